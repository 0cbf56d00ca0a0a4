//! `adapter_config.json`, as PEFT 0.21 writes it for this setting.

use serde_json::{Value, json};

use super::config::LoraConfig;
use super::selection::Selection;
use crate::model::{LinearName, Parameter};

/// The PEFT release whose files ours are made to equal.
const PEFT_VERSION: &str = "0.21.2";

/// What an adapter folder says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    /// Rank, scale and layers. In an adapter read from a file `target_modules` keeps the file's order.
    pub lora: LoraConfig,
    /// The model it was trained on: a Hub id or a path.
    pub base_model_name_or_path: Option<String>,
    /// Whether the trained head and embedding are one tensor. False if they were not trained.
    pub tied: bool,
    /// Whether the scale is `lora_alpha / √r` (rank-stabilised LoRA) instead of `lora_alpha / r`.
    pub use_rslora: bool,
    /// Whether merged rows keep a length of their own (weight-decomposed LoRA, Liu et al. 2024).
    pub use_dora: bool,
    /// Rows of an untied head that are trained, as PEFT's `trainable_token_indices` can say by module. We
    /// train none; adapters that do are read, merged and written.
    pub(super) head_tokens: Option<Vec<u32>>,
    /// What the adapter is on, where that is not [`LoraConfig::targets`] in every block.
    pub(super) selection: Option<Box<Selection>>,
}

impl AdapterConfig {
    /// The description of an adapter that was trained by `lora` on `base`.
    ///
    /// `tied` says whether head and embedding are one trained tensor: the base is tied and
    /// `ensure_weight_tying` is on. It is ignored where `lora` trains neither.
    #[must_use]
    pub fn new(lora: &LoraConfig, base: Option<&str>, tied: bool) -> Self {
        let tied = tied && lora.trains_embeddings();
        let base = base.map(String::from);
        Self {
            lora: lora.clone(),
            base_model_name_or_path: base,
            tied,
            use_rslora: false,
            use_dora: false,
            head_tokens: None,
            selection: None,
        }
    }

    /// What `B A x` is multiplied by, where a module has no rank or scale of its own.
    #[must_use]
    pub fn scaling(&self) -> f64 {
        self.scale_of(self.lora.lora_alpha, self.lora.r)
    }

    /// What `B A x` is multiplied by in the linear layer `which` of block `layer`.
    #[must_use]
    pub fn module_scaling(&self, layer: usize, which: LinearName) -> f64 {
        match &self.selection {
            Some(selection) => {
                let alpha = selection.alpha(layer, which, self.lora.lora_alpha);
                self.scale_of(alpha, selection.rank(layer, which, self.lora.r))
            }
            None => self.scaling(),
        }
    }

    /// The rank of A and B in the linear layer `which` of block `layer`.
    #[must_use]
    pub fn module_rank(&self, layer: usize, which: LinearName) -> usize {
        self.selection.as_ref().map_or(self.lora.r, |selection| selection.rank(layer, which, self.lora.r))
    }

    /// Whether the adapter is on the linear layer `which` of block `layer`.
    #[must_use]
    pub fn is_on(&self, layer: usize, which: LinearName) -> bool {
        match &self.selection {
            Some(selection) => selection.has(layer, which),
            None => self.lora.targets().contains(&which),
        }
    }

    /// The rows of embedding and head that are trained: the parameter, and the rows' ids.
    pub(super) fn token_rows(&self) -> impl Iterator<Item = (Parameter, &[u32])> {
        let embedding = self.lora.trainable_token_indices.ids().map(|ids| (Parameter::EmbedTokensRows, ids));
        let head = self.head_tokens.as_deref().map(|ids| (Parameter::LmHeadRows, ids));
        embedding.into_iter().chain(head)
    }

    fn scale_of(&self, alpha: f64, r: usize) -> f64 {
        alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 }
    }

    /// A warning for people if the adapter was trained on a model of another name than `base`.
    ///
    /// Only a warning: the same model goes by a Hub id here and by a path there.
    #[must_use]
    pub fn base_warning(&self, base: &str) -> Option<String> {
        let trained_on = self.base_model_name_or_path.as_deref()?;
        (model_name(trained_on) != model_name(base)).then(|| {
            format!(
                "the adapter was trained on {trained_on}, and is now put on {base}: are they the same model?"
            )
        })
    }

    /// The text of `adapter_config.json`: the fields PEFT writes, in its order and layout.
    #[must_use]
    pub fn to_json(&self) -> String {
        // What our own fields cannot say is written as it was read.
        if let Some(selection) = &self.selection {
            return format!("{:#}", Value::Object(selection.fields.clone()));
        }
        let lora = &self.lora;
        // In the tied form PEFT trains the embedding and hangs the head on it, and says so like this.
        let modules_to_save = match (lora.trains_embeddings(), self.tied) {
            (false, _) => Value::Null,
            (true, true) => json!(["embed_tokens", "model.embed_tokens"]),
            (true, false) => json!(lora.modules_to_save),
        };
        let targets = match lora.target_modules.iter().all(|name| LinearName::from_name(name).is_some()) {
            true => json!(lora.target_modules),
            false => json!(lora.targets().into_iter().map(LinearName::name).collect::<Vec<_>>()),
        };
        let token_indices = match (lora.trainable_token_indices.ids(), &self.head_tokens) {
            (None, None) => Value::Null,
            (Some(ids), None) => json!(ids),
            (ids, Some(head)) => {
                let mut by_module = serde_json::Map::new();
                if let Some(ids) = ids {
                    by_module.insert("embed_tokens".into(), json!(ids));
                }
                by_module.insert("lm_head".into(), json!(head));
                Value::Object(by_module)
            }
        };
        let fields = json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": {},
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "corda_config": null,
            "ensure_weight_tying": lora.ensure_weight_tying,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": whole_or_float(lora.lora_alpha),
            "lora_bias": false,
            "lora_dropout": lora.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": modules_to_save,
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": lora.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": targets,
            "target_parameters": null,
            "task_type": "CAUSAL_LM",
            "trainable_token_indices": token_indices,
            "use_bdlora": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        });
        // A Value always prints: only foreign Serialize implementations can fail.
        format!("{fields:#}")
    }
}

/// The last part of a model's name or path, without what says only how it is stored: the same model is
/// `google/gemma-3-270m-it`, `unsloth/gemma-3-270m-it-bnb-4bit` and `~/models/gemma-3-270m-it-Q8_0.gguf`.
fn model_name(name: &str) -> String {
    // In the Hub's cache the id is in a folder above the commit's.
    let cached = name.split('/').find_map(|part| part.strip_prefix("models--"));
    let name = cached.map_or(name, |id| id.rsplit("--").next().unwrap_or(id));
    let last = name.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(name);
    let mut short = last.to_ascii_lowercase().replace('_', "-");
    for end in
        [".gguf", "-gguf", "-bnb-4bit", "-unsloth", "-bf16", "-f16", "-f32", "-q8-0", "-q4-0", "-q4-k-m"]
    {
        short = short.strip_suffix(end).unwrap_or(&short).to_string();
    }
    short
}

/// PEFT keeps `lora_alpha` as it was given, and people give whole numbers.
pub(super) fn whole_or_float(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_base_is_only_worth_a_warning() {
        let config = AdapterConfig::new(&LoraConfig::default(), Some("google/gemma-3-270m-it"), true);
        assert_eq!(config.base_warning("/models/gemma-3-270m-it/"), None);
        for same in [
            "unsloth/gemma-3-270m-it-unsloth-bnb-4bit",
            "a/gemma-3-270m-it-Q8_0.gguf",
            "/c/hub/models--google--gemma-3-270m-it/snapshots/0123",
        ] {
            assert_eq!(config.base_warning(same), None, "{same}");
        }
        assert!(config.base_warning("google/gemma-3-270m").is_some());
        assert!(config.base_warning("tiny").unwrap().contains("google/gemma-3-270m-it"));
        let unnamed = AdapterConfig { base_model_name_or_path: None, ..config };
        assert_eq!(unnamed.base_warning("tiny"), None);
    }
}
