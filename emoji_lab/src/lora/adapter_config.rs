//! `adapter_config.json`, as PEFT 0.21 writes it for this setting.

use serde_json::{Map, Value, json};

use super::config::{ALL_LINEAR, LoraConfig, WHOLE_MODULES};
use super::selection::Selection;
use crate::error::{Error, Result};

/// The PEFT release whose files ours are made to equal.
const PEFT_VERSION: &str = "0.21.2";

const HELP: &str = "Use a plain LoRA adapter, as PEFT's LoraConfig makes it with the notebook's settings";

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
            selection: None,
        }
    }

    /// What `B A x` is multiplied by, where a module has no rank or scale of its own.
    #[must_use]
    pub fn scaling(&self) -> f64 {
        self.scale_of(self.lora.lora_alpha, self.lora.r)
    }

    /// What `B A x` is multiplied by in the linear layer `name` of block `layer`.
    #[must_use]
    pub fn module_scaling(&self, layer: usize, name: &str) -> f64 {
        match &self.selection {
            Some(selection) => {
                let alpha = selection.alpha(layer, name, self.lora.lora_alpha);
                self.scale_of(alpha, selection.rank(layer, name, self.lora.r))
            }
            None => self.scaling(),
        }
    }

    /// The rank of A and B in the linear layer `name` of block `layer`.
    #[must_use]
    pub fn module_rank(&self, layer: usize, name: &str) -> usize {
        self.selection.as_ref().map_or(self.lora.r, |selection| selection.rank(layer, name, self.lora.r))
    }

    /// Whether the adapter is on the linear layer `name` of block `layer`.
    #[must_use]
    pub fn is_on(&self, layer: usize, name: &str) -> bool {
        match &self.selection {
            Some(selection) => selection.has(layer, name),
            None => self.lora.targets().contains(&name),
        }
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
        let targets = match lora.target_modules.iter().all(|name| ALL_LINEAR.contains(&name.as_str())) {
            true => json!(lora.target_modules),
            false => json!(lora.targets()),
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
            "trainable_token_indices": null,
            "use_bdlora": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        });
        // A Value always prints: only foreign Serialize implementations can fail.
        format!("{fields:#}")
    }

    /// Reads the text of an `adapter_config.json`; `origin` names the file in errors.
    ///
    /// `found` are the linear layers that the adapter's tensors belong to: they stand in where
    /// `target_modules` is a pattern or has longer names.
    ///
    /// # Errors
    /// [`Error::Model`] if it is not JSON, not LoRA, lacks a field, or switches on something that
    /// changes the arithmetic and that is not supported here (biases, activated LoRA, …).
    pub fn from_json(text: &str, origin: &str, found: &[&str]) -> Result<Self> {
        let wrong = |problem: String| Error::model(origin, problem, HELP);
        let fields: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            let help = "The file is cut short or was edited; take the adapter folder again from its source";
            Error::model(origin, format!("not readable as a JSON object: {e}"), help)
        })?;
        for (name, value) in &fields {
            if !is_supported(name, value) {
                return Err(wrong(format!("{name} = {value} is not supported")));
            }
        }
        let field = |name: &'static str| fields.get(name).unwrap_or(&Value::Null);
        let bad = |name: &'static str, want: &str| wrong(format!("{name} is {}, not {want}", field(name)));

        let r = field("r").as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| *r > 0);
        let r = r.ok_or_else(|| bad("r", "a whole number above 0"))?;
        let alpha = field("lora_alpha").as_f64();
        let lora_alpha = alpha.ok_or_else(|| bad("lora_alpha", "a number"))?;
        let dropout = field("lora_dropout");
        let lora_dropout = if dropout.is_null() { Some(0.0) } else { dropout.as_f64() };
        let lora_dropout = lora_dropout.ok_or_else(|| bad("lora_dropout", "a number"))?;

        let selection = Selection::read(&fields).map_err(wrong)?.map(Box::new);
        // LoRA on the embedding or the head is arithmetic of its own.
        let named = strings(field("target_modules")).unwrap_or_default();
        if let Some(whole) = named.iter().find(|name| WHOLE_MODULES.iter().any(|whole| name.ends_with(whole)))
        {
            return Err(wrong(format!(
                "target_modules names {whole}: LoRA on the embedding or the head is not supported"
            )));
        }
        let target_modules = match field("target_modules") {
            Value::String(_) | Value::Array(_) if selection.is_some() => {
                found.iter().map(|name| (*name).to_string()).collect()
            }
            Value::String(_) => found.iter().map(|name| (*name).to_string()).collect(),
            list @ Value::Array(_) => {
                let names = strings(list).ok_or_else(|| bad("target_modules", "a list of names"))?;
                let known = |name: &String| ALL_LINEAR.contains(&name.as_str());
                if names == ["all-linear"] {
                    ALL_LINEAR.map(String::from).to_vec()
                } else if let Some(other) = names.iter().find(|name| !known(name)) {
                    return Err(wrong(format!(
                        "target_modules names {other}, not a linear layer of Gemma 3"
                    )));
                } else {
                    names
                }
            }
            _ => return Err(bad("target_modules", "a list of names")),
        };
        let ensure_weight_tying = field("ensure_weight_tying").as_bool().unwrap_or(false);
        let modules_to_save = match field("modules_to_save") {
            Value::Null => Vec::new(),
            list => {
                let names = strings(list).ok_or_else(|| bad("modules_to_save", "a list of names"))?;
                whole_modules(&names, ensure_weight_tying).map_err(|other| {
                    wrong(format!("modules_to_save names {other}, which is not supported"))
                })?
            }
        };
        let tied = ensure_weight_tying && !modules_to_save.is_empty();
        Ok(Self {
            lora: LoraConfig {
                r,
                lora_alpha,
                target_modules,
                lora_dropout,
                modules_to_save,
                ensure_weight_tying,
            },
            base_model_name_or_path: field("base_model_name_or_path").as_str().map(String::from),
            tied,
            use_rslora: field("use_rslora").as_bool().unwrap_or(false),
            use_dora: field("use_dora").as_bool().unwrap_or(false),
            selection,
        })
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

pub(super) fn strings(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|item| item.as_str().map(String::from)).collect()
}

/// The file's `modules_to_save` under our two names, or the name that is neither.
fn whole_modules(names: &[String], tying: bool) -> std::result::Result<Vec<String>, &String> {
    let mut whole = Vec::new();
    for name in names {
        // PEFT compares the end of a path: `model.language_model.embed_tokens` is the same module.
        let short = name.rsplit('.').next().unwrap_or(name);
        if !WHOLE_MODULES.contains(&short) {
            return Err(name);
        }
        if !whole.iter().any(|known| known == short) {
            whole.push(short.to_string());
        }
    }
    // With tying, naming one of the pair trains both.
    Ok(if tying && !whole.is_empty() { WHOLE_MODULES.map(String::from).to_vec() } else { whole })
}

/// Whether a field has a value that this crate gives the same meaning as PEFT.
///
/// A field that is not known is fine as long as it is off, so that files of other PEFT releases
/// are read, and nothing that changes the result is passed over in silence.
fn is_supported(name: &str, value: &Value) -> bool {
    match name {
        "peft_type" => value == "LORA",
        // Gemma's linear layers have no biases, so there are none to train; a tensor of one is refused.
        "bias" => matches!(value.as_str(), Some("none" | "all" | "lora_only")),
        // These start A and B differently and leave the base model as it is; the rest do not.
        "init_lora_weights" => {
            value.is_boolean() || value == "gaussian" || value == "orthogonal" || value == "eva"
        }
        // Read by `from_json`, or with no say in what the adapter computes.
        "r"
        | "lora_alpha"
        | "lora_dropout"
        | "target_modules"
        | "modules_to_save"
        | "use_rslora"
        | "use_dora"
        | "exclude_modules"
        | "layers_to_transform"
        | "layers_pattern"
        | "rank_pattern"
        | "alpha_pattern"
        | "ensure_weight_tying"
        | "base_model_name_or_path"
        | "auto_mapping"
        | "inference_mode"
        | "megatron_config"
        | "megatron_core"
        | "peft_version"
        | "task_type"
        // PEFT switches it off for linear layers, with a warning.
        | "fan_in_fan_out"
        // How A and B, or the optimizer, were set up: what came of it is in the tensors.
        | "eva_config"
        | "corda_config"
        | "loftq_config"
        | "lora_ga_config"
        | "runtime_config"
        | "qalora_group_size"
        | "revision" => true,
        _ => match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The text PEFT 0.21.2 wrote for LoraConfig(r=4, lora_alpha=8, "all-linear", lora_dropout=0.0,
    // modules_to_save=["lm_head", "embed_tokens"], ensure_weight_tying=True) on a tied Gemma 3.
    pub(crate) const PEFT_TIED: &str = include_str!("peft_adapter_config.json");

    fn read(text: &str) -> Result<AdapterConfig> {
        AdapterConfig::from_json(text, "adapter_config.json", &ALL_LINEAR)
    }

    #[test]
    fn what_peft_wrote_is_read_and_written_back_byte_for_byte() {
        let config = read(PEFT_TIED).unwrap();
        assert!(config.tied);
        assert_eq!(config.lora.modules_to_save, ["lm_head", "embed_tokens"]);
        assert_eq!(config.scaling(), 2.0);
        assert_eq!(config.to_json(), PEFT_TIED);
    }

    #[test]
    fn the_untied_form_and_no_whole_modules() {
        let untied = PEFT_TIED
            .replace("\"ensure_weight_tying\": true", "\"ensure_weight_tying\": false")
            .replace("\"embed_tokens\",\n    \"model.embed_tokens\"", "\"lm_head\",\n    \"embed_tokens\"");
        let config = read(&untied).unwrap();
        let path = untied.replace("\"embed_tokens\"", "\"model.language_model.embed_tokens\"");
        assert!(path != untied && read(&path).unwrap() == config);
        assert!(!config.tied);
        assert_eq!(config.to_json(), untied);

        let lora = LoraConfig { modules_to_save: vec![], lora_alpha: 1.5, ..Default::default() };
        let plain = AdapterConfig::new(&lora, None, true);
        assert!(!plain.tied);
        let text = plain.to_json();
        assert!(text.contains("\"modules_to_save\": null") && text.contains("\"lora_alpha\": 1.5"));
        assert_eq!(read(&text).unwrap(), plain);
    }

    #[test]
    fn all_linear_is_written_as_names_and_read_as_text_or_list() {
        let lora = LoraConfig { target_modules: vec!["all-linear".into()], ..Default::default() };
        let text = AdapterConfig::new(&lora, Some("google/gemma-3-270m-it"), true).to_json();
        assert!(!text.contains("all-linear"));
        assert_eq!(read(&text).unwrap().lora.target_modules, ALL_LINEAR);
        for form in ["\"all-linear\"", "[\"all-linear\"]"] {
            let fields = format!(r#"{{"peft_type":"LORA","r":2,"lora_alpha":4,"target_modules":{form}}}"#);
            assert_eq!(read(&fields).unwrap().lora.targets(), ALL_LINEAR);
        }
    }

    #[test]
    fn rslora_divides_by_the_root() {
        let config = read(&PEFT_TIED.replace("\"use_rslora\": false", "\"use_rslora\": true")).unwrap();
        assert_eq!(config.scaling(), 4.0);
    }

    #[test]
    fn what_changes_the_arithmetic_is_refused_by_name() {
        let cases = [
            (
                "\"rank_pattern\": {}",
                "\"rank_pattern\": {\"q_proj\": \"8\"}",
                "rank_pattern is {\"q_proj\":\"8\"}",
            ),
            ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"(q_proj\": 8}", "alpha_pattern has"),
            ("\"lora_bias\": false", "\"lora_bias\": true", "lora_bias = true is not supported"),
            ("\"bias\": \"none\"", "\"bias\": \"some\"", "bias = \"some\""),
            ("\"peft_type\": \"LORA\"", "\"peft_type\": \"IA3\"", "peft_type = \"IA3\""),
            ("\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "init_lora_weights"),
            ("\"velora_config\": null", "\"new_thing\": 3", "new_thing = 3"),
            ("\"r\": 4", "\"r\": 0", "r is 0"),
            ("\"r\": 4", "\"R\": null", "r is null"),
            ("\"model.embed_tokens\"", "\"norm\"", "modules_to_save names norm"),
            ("\"model.embed_tokens\"", "\"lm_head.x\"", "modules_to_save names lm_head.x"),
        ];
        for (from, to, says) in cases {
            assert!(PEFT_TIED.contains(from), "{from}");
            let error = read(&PEFT_TIED.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
        let error = read(&PEFT_TIED[..100]).unwrap_err().to_string();
        assert!(error.contains("not readable as a JSON object"), "{error}");
    }

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
