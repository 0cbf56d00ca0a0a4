//! Adapter folders: `adapter_config.json` and `adapter_model.safetensors`, PEFT's and ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor};

use super::adapter_config::AdapterConfig;
use super::config::ALL_LINEAR;
use super::{folder, names};
use crate::display::say;
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::model::{Gemma3Config, read_safetensors, write_safetensors};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const TENSOR_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before a module's name: its own wrapper, and LoRA's.
pub(super) const PREFIX: &str = "base_model.model.";

pub use crate::model::{EMBED_TOKENS, LM_HEAD};

/// The path of a linear layer in the model: `module_path(0, "q_proj")` is
/// `model.layers.0.self_attn.q_proj`.
#[must_use]
pub fn module_path(layer: usize, name: &str) -> String {
    let block = if matches!(name, "gate_proj" | "up_proj" | "down_proj") { "mlp" } else { "self_attn" };
    format!("model.layers.{layer}.{block}.{name}")
}

/// The name of a layer's A, shape `[r, in_features]`.
#[must_use]
pub fn lora_a(layer: usize, name: &str) -> String {
    format!("{}.lora_A.weight", module_path(layer, name))
}

/// The name of a layer's B, shape `[out_features, r]`.
#[must_use]
pub fn lora_b(layer: usize, name: &str) -> String {
    format!("{}.lora_B.weight", module_path(layer, name))
}

/// The name of a layer's magnitudes in weight-decomposed LoRA, shape `[out_features]`.
pub(super) fn magnitude(layer: usize, name: &str) -> String {
    format!("{}.lora_magnitude_vector", module_path(layer, name))
}

/// A trained adapter: its settings and its tensors.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Rank, scale, layers, base model.
    pub config: AdapterConfig,
    /// By the model's own names: [`lora_a`], [`lora_b`], [`LM_HEAD`], [`EMBED_TOKENS`]. In the tied
    /// form head and embedding are there both, and are one tensor.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Adapter {
    /// An adapter of `tensors`, under their own names or PEFT's (`base_model.model.…`, `.default.`).
    ///
    /// # Errors
    /// [`Error::Model`] if a tensor that `config` asks for is missing, one has a shape that does
    /// not fit the rank, or one does not belong to an adapter.
    pub fn new(config: AdapterConfig, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        let named = names::own_names(tensors).map_err(|(name, other)| {
            Error::model("adapter", format!("{name} and {other} are the same tensor"), "Give each once")
        })?;
        Self::checked(config, named.tensors, "adapter")
    }

    /// Reads the adapter folder `dir`: one that PEFT wrote, or [`save`](Self::save).
    /// Tensors come as f32 on the CPU.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Model`] that names the file, field or tensor which is missing,
    /// cut short, or of a kind that is not supported.
    pub fn load(dir: &Path) -> Result<Self> {
        let (config_file, tensor_file) = folder::files(dir)?;
        let text = fs::read_to_string(&config_file)
            .map_err(|e| Error::io(&config_file, "reading the adapter's settings", e))?;
        // The settings first: what they refuse should not wait for a gigabyte of tensors.
        let origin = config_file.display().to_string();
        AdapterConfig::from_json(&text, &origin, &ALL_LINEAR)?;
        let names::Named { tensors, prefix, passed_over } = names::own_names(read_safetensors(&tensor_file)?)
            .map_err(|(name, other)| {
                let help = "Take the adapter again from its source: the file names one tensor twice";
                Error::model(tensor_file.display(), format!("{name} and {other} are the same tensor"), help)
            })?;
        if passed_over > 0 {
            say(format_args!(
                "{}: {passed_over} tensors of the vision part are passed over, only the text part is used",
                tensor_file.display()
            ));
        }
        let found: Vec<&str> = ALL_LINEAR
            .into_iter()
            .filter(|name| tensors.keys().any(|key| key.contains(&format!(".{name}.lora_"))))
            .collect();
        let mut config = AdapterConfig::from_json(&text, &origin, &found)?;
        if let Some(selection) = &mut config.selection {
            selection.prefix = prefix;
        }
        Self::checked(config, tensors, &tensor_file.display().to_string())
    }

    /// Writes the adapter folder `dir`, which PEFT reads. What else is in `dir` stays: it may be
    /// the output folder, with checkpoints and logs in it.
    ///
    /// The files take their places once both are on disk, the settings last, so that a folder which
    /// has them has the tensors too.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written; it is as it was then.
    pub fn save(&self, dir: &Path) -> Result<()> {
        write_into_dir(dir, CONFIG_FILE, |stage| self.write_files(stage))
    }

    /// Writes the files of [`save`](Self::save) one by one.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        let named = self.tensors.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone()));
        write_safetensors(&dir.join(TENSOR_FILE), &named.collect(), None)?;
        write_bytes_atomic(&dir.join(CONFIG_FILE), self.config.to_json().as_bytes())
    }

    /// How many layers have an adapter.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        layer_count(&self.tensors)
    }

    /// Checks that the adapter fits a model of this shape: as many layers, and each tensor as
    /// wide as its layer.
    ///
    /// # Errors
    /// [`Error::Model`] that names the first tensor which does not fit.
    pub fn check_fits(&self, model: &Gemma3Config) -> Result<()> {
        let origin = self.config.base_model_name_or_path.as_deref().unwrap_or("another model");
        let help = format!("The adapter was trained on {origin}: merge it into that one");
        let wrong = |problem: String| Error::model("adapter", problem, &help);
        let layers = model.num_hidden_layers;
        if self.config.selection.is_none() && self.num_layers() != layers {
            return Err(wrong(format!("it has {} layers, the model {layers}", self.num_layers())));
        }
        if let Some(beyond) =
            self.tensors.keys().find(|name| layer_of(name).is_some_and(|layer| layer >= layers))
        {
            return Err(wrong(format!("it has tensor {beyond}, the model has {layers} layers")));
        }
        let fits = |name: &str, dims: [usize; 2]| match self.tensors.get(name) {
            Some(tensor) if tensor.dims() != dims => {
                Err(wrong(format!("tensor {name} has shape {:?}, the model needs {dims:?}", tensor.dims())))
            }
            _ => Ok(()),
        };
        for layer in 0..layers {
            for name in ALL_LINEAR {
                let [out, width] = linear_dims(model, name);
                let r = self.config.module_rank(layer, name);
                if self.config.is_on(layer, name) && !self.tensors.contains_key(&lora_a(layer, name)) {
                    return Err(wrong(format!("it has no tensor {}", lora_a(layer, name))));
                }
                fits(&lora_a(layer, name), [r, width])?;
                fits(&lora_b(layer, name), [out, r])?;
            }
        }
        fits(LM_HEAD, [model.vocab_size, model.hidden_size])?;
        fits(EMBED_TOKENS, [model.vocab_size, model.hidden_size])
    }

    fn checked(
        mut config: AdapterConfig,
        mut tensors: BTreeMap<String, Tensor>,
        origin: &str,
    ) -> Result<Self> {
        let wrong = |problem: String| {
            let help = "The tensors and adapter_config.json do not belong together, or some are missing";
            Error::model(origin, problem, help)
        };
        share_tied(&mut config, &mut tensors)?;
        let layers: BTreeSet<usize> = tensors.keys().filter_map(|name| layer_of(name)).collect();
        let (mut expected, mut magnitudes) = (BTreeMap::new(), BTreeSet::new());
        // Without a selection every block from the first on must be there.
        let blocks: Vec<usize> = match &config.selection {
            Some(_) => layers.iter().copied().collect(),
            None => (0..layers.len()).collect(),
        };
        for layer in blocks {
            for name in ALL_LINEAR.into_iter().filter(|name| config.is_on(layer, name)) {
                let r = config.module_rank(layer, name);
                expected.insert(lora_a(layer, name), Some((0, r)));
                expected.insert(lora_b(layer, name), Some((1, r)));
                if config.use_dora {
                    magnitudes.insert(magnitude(layer, name));
                }
            }
        }
        for whole in &config.lora.modules_to_save {
            expected.insert(if whole == "lm_head" { LM_HEAD } else { EMBED_TOKENS }.to_string(), None);
        }
        // PEFT saves the embedding beside the adapter where it was made larger, or on request.
        for whole in [LM_HEAD, EMBED_TOKENS] {
            if tensors.contains_key(whole) {
                expected.entry(whole.to_string()).or_insert(None);
            }
        }
        if layers.is_empty() && config.lora.modules_to_save.is_empty() {
            return Err(wrong("no lora_A tensor of a model layer".into()));
        }
        let is_known = |name: &String| expected.contains_key(name) || magnitudes.contains(name);
        if let Some(stray) = tensors.keys().find(|name| !is_known(name)) {
            return Err(wrong(format!("tensor {stray} is not one that the settings ask for")));
        }
        if let Some(name) = magnitudes.iter().find(|name| !tensors.contains_key(*name)) {
            return Err(wrong(format!("no tensor {name}, which use_dora = true asks for")));
        }
        for (name, rank) in &expected {
            let tensor = tensors.get(name).ok_or_else(|| wrong(format!("no tensor {name}")))?;
            let dims = tensor.dims();
            if dims.len() != 2 {
                return Err(wrong(format!("tensor {name} has shape {dims:?}, not two axes")));
            }
            if let Some((axis, r)) = rank
                && dims.get(*axis) != Some(r)
            {
                return Err(wrong(format!(
                    "tensor {name} has shape {dims:?}, axis {axis} should be r = {r}"
                )));
            }
        }
        if let Some(selection) = config.selection.take() {
            let blocks: Vec<usize> = layers.into_iter().collect();
            let usual = (config.lora.r, config.lora.lora_alpha);
            config.selection = Some(Box::new(selection.in_own_names(&blocks, usual)));
        }
        Ok(Self { config, tensors })
    }
}

/// Layers that have a tensor of their own, counted.
fn layer_count(tensors: &BTreeMap<String, Tensor>) -> usize {
    tensors.keys().filter_map(|name| layer_of(name)).collect::<BTreeSet<_>>().len()
}

/// The number of the block that a tensor belongs to.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Makes head and embedding one tensor where `config` says so and their values agree.
///
/// `ensure_weight_tying` is also found on adapters of a base that was never tied; there the two
/// differ, and the adapter is of the untied form.
fn share_tied(config: &mut AdapterConfig, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    if !config.tied {
        return Ok(());
    }
    match (tensors.get(LM_HEAD).cloned(), tensors.get(EMBED_TOKENS).cloned()) {
        (Some(head), Some(embed)) if same_values(&head, &embed)? => {
            tensors.insert(LM_HEAD.into(), embed);
        }
        (Some(_), Some(_)) => config.tied = false,
        (Some(only), None) => {
            tensors.insert(EMBED_TOKENS.into(), only);
        }
        (None, Some(only)) => {
            tensors.insert(LM_HEAD.into(), only);
        }
        (None, None) => {}
    }
    Ok(())
}

pub(super) fn same_values(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.id() == b.id() {
        return Ok(true);
    }
    if a.dims() != b.dims() || a.rank() == 0 {
        return Ok(false);
    }
    // In blocks: the embedding of the real model is 671 MB.
    const ROWS: usize = 8192;
    let bits = |tensor: &Tensor, start: usize, rows: usize| -> Result<Vec<u32>> {
        let values = tensor.narrow(0, start, rows)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    };
    let rows = a.dims().first().copied().unwrap_or(0);
    for start in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - start);
        if bits(a, start, count)? != bits(b, start, count)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `[out_features, in_features]` of a linear layer.
fn linear_dims(model: &Gemma3Config, name: &str) -> [usize; 2] {
    let queries = model.num_attention_heads * model.head_dim;
    match name {
        "q_proj" => [queries, model.hidden_size],
        "o_proj" => [model.hidden_size, queries],
        "gate_proj" | "up_proj" => [model.intermediate_size, model.hidden_size],
        "down_proj" => [model.hidden_size, model.intermediate_size],
        _ => [model.num_key_value_heads * model.head_dim, model.hidden_size],
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::lora::LoraConfig;
    use crate::model::LayerType;

    fn model() -> Gemma3Config {
        Gemma3Config {
            vocab_size: 11,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 3,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-6,
            query_pre_attn_scalar: 3.0,
            sliding_window: 4,
            layer_types: vec![LayerType::SlidingAttention; 2],
            rope_theta: 1e6,
            rope_local_base_freq: 1e4,
            rope_scaling_factor: 1.0,
            tie_word_embeddings: true,
            pad_token_id: 0,
            bos_token_id: 2,
            eos_token_ids: vec![1],
        }
    }

    fn random(dims: [usize; 2]) -> Tensor {
        Tensor::randn(0f32, 1f32, &dims, &Device::Cpu).unwrap()
    }

    /// An adapter for [`model`] with random values, r = 2.
    fn adapter(tied: bool, whole: bool) -> Adapter {
        let mut lora = LoraConfig { r: 2, ensure_weight_tying: tied, ..Default::default() };
        let mut tensors = BTreeMap::new();
        for layer in 0..2 {
            for name in ALL_LINEAR {
                let [out, width] = linear_dims(&model(), name);
                tensors.insert(lora_a(layer, name), random([2, width]));
                tensors.insert(lora_b(layer, name), random([out, 2]));
            }
        }
        if whole {
            tensors.insert(EMBED_TOKENS.into(), random([11, 8]));
            if !tied {
                tensors.insert(LM_HEAD.into(), random([11, 8]));
            }
        } else {
            lora.modules_to_save.clear();
        }
        Adapter::new(AdapterConfig::new(&lora, Some("tiny"), tied), tensors).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn names_are_those_of_transformers() {
        assert_eq!(module_path(0, "q_proj"), "model.layers.0.self_attn.q_proj");
        assert_eq!(lora_a(17, "down_proj"), "model.layers.17.mlp.down_proj.lora_A.weight");
    }

    #[test]
    fn what_is_saved_is_loaded_in_every_form() {
        for (tied, whole) in [(true, true), (false, true), (true, false)] {
            let dir = tempfile::tempdir().unwrap();
            let saved = adapter(tied, whole);
            saved.save(dir.path()).unwrap();
            let loaded = Adapter::load(dir.path()).unwrap();
            assert_eq!(loaded.config, saved.config);
            assert_eq!(loaded.config.tied, tied && whole);
            assert_eq!(loaded.num_layers(), 2);
            loaded.check_fits(&model()).unwrap();
            assert_eq!(loaded.tensors.keys().collect::<Vec<_>>(), saved.tensors.keys().collect::<Vec<_>>());
            for (name, tensor) in &loaded.tensors {
                assert_eq!(values(tensor), values(&saved.tensors[name]), "{name}");
            }
            if tied && whole {
                assert_eq!(loaded.tensors[LM_HEAD].id(), loaded.tensors[EMBED_TOKENS].id());
            }
            // Again, and over what is there: the same bytes.
            let first = fs::read(dir.path().join(TENSOR_FILE)).unwrap();
            loaded.save(dir.path()).unwrap();
            assert_eq!(fs::read(dir.path().join(TENSOR_FILE)).unwrap(), first);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
        }
    }

    #[test]
    fn saving_leaves_the_rest_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("checkpoint-5")).unwrap();
        adapter(true, false).save(dir.path()).unwrap();
        assert!(dir.path().join("checkpoint-5").is_dir());
    }

    #[test]
    fn tying_is_what_the_tensors_say() {
        let mut untied = adapter(false, true);
        untied.config.lora.ensure_weight_tying = true;
        let dir = tempfile::tempdir().unwrap();
        untied.save(dir.path()).unwrap();
        let loaded = Adapter::load(dir.path()).unwrap();
        assert!(!loaded.config.tied, "head and embedding differ");
    }

    #[test]
    fn names_of_a_live_peft_model_are_understood() {
        let plain = adapter(false, true);
        let live = |name: &String| match name.as_str() {
            LM_HEAD | EMBED_TOKENS => {
                format!("{PREFIX}{}", name.replace(".weight", ".modules_to_save.default.weight"))
            }
            _ => format!("{PREFIX}{}", name.replace(".weight", ".default.weight")),
        };
        let mut tensors: BTreeMap<_, _> = plain.tensors.iter().map(|(k, v)| (live(k), v.clone())).collect();
        tensors.insert(format!("{PREFIX}lm_head.original_module.weight"), random([11, 8]));
        let read = Adapter::new(plain.config.clone(), tensors).unwrap();
        assert!(read.tensors.keys().eq(plain.tensors.keys()));
    }

    #[test]
    fn a_damaged_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let says = |part: &str| {
            let error = Adapter::load(dir.path()).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error} should say {part}");
        };
        says("no adapter_config.json");
        let good = adapter(true, true);
        good.save(dir.path()).unwrap();
        let file = dir.path().join(TENSOR_FILE);
        let bytes = fs::read(&file).unwrap();
        for cut in [0, 5, 100, bytes.len() - 1] {
            fs::write(&file, &bytes[..cut]).unwrap();
            says("adapter_model.safetensors: damaged or cut short");
        }
        fs::remove_file(&file).unwrap();
        says("no adapter_model.safetensors");

        let mut short = good.clone();
        short.tensors.remove(&lora_b(1, "v_proj"));
        short.save(dir.path()).unwrap();
        says("no tensor model.layers.1.self_attn.v_proj.lora_B.weight");
        let mut wide = good.clone();
        wide.tensors.insert(lora_a(0, "q_proj"), random([3, 8]));
        wide.save(dir.path()).unwrap();
        says("model.layers.0.self_attn.q_proj.lora_A.weight has shape [3, 8], axis 0 should be r = 2");
        let mut stray = good.clone();
        stray.tensors.insert("model.norm.weight".into(), random([1, 8]));
        stray.save(dir.path()).unwrap();
        says("tensor model.norm.weight is not one that the settings ask for");
    }

    #[test]
    fn an_adapter_of_another_model_does_not_fit() {
        let says = |model: &Gemma3Config, part: &str| {
            let error = adapter(true, true).check_fits(model).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("trained on tiny"), "{error}");
        };
        says(&Gemma3Config { num_hidden_layers: 3, ..model() }, "2 layers, the model 3");
        says(&Gemma3Config { vocab_size: 12, ..model() }, "lm_head.weight has shape [11, 8]");
        says(&Gemma3Config { intermediate_size: 13, ..model() }, "mlp.gate_proj.lora_B");
    }

    #[test]
    fn folders_that_peft_wrote_come_back_byte_for_byte() {
        let Some(golden) = std::env::var_os("EMOJI_LAB_GOLDEN") else {
            println!("skipped: set EMOJI_LAB_GOLDEN to the folder of golden numbers");
            return;
        };
        for run in ["qlora_tied", "qlora_untied", "lora_untied"] {
            for state in ["init", "final"] {
                let dir = Path::new(&golden).join(run).join(state);
                let adapter = Adapter::load(&dir).unwrap();
                assert_eq!(adapter.config.tied, run.ends_with("_tied"), "{run}/{state}");
                assert_eq!(adapter.config.scaling(), 2.0);
                let copy = tempfile::tempdir().unwrap();
                adapter.save(copy.path()).unwrap();
                for file in [CONFIG_FILE, TENSOR_FILE] {
                    let (theirs, ours) = (fs::read(dir.join(file)), fs::read(copy.path().join(file)));
                    assert!(theirs.unwrap() == ours.unwrap(), "{run}/{state}/{file}");
                }
            }
        }
        let live = read_safetensors(&Path::new(&golden).join("real/lora_init.safetensors")).unwrap();
        let lora = LoraConfig { r: 2, lora_alpha: 4.0, modules_to_save: vec![], ..Default::default() };
        let real = Adapter::new(AdapterConfig::new(&lora, None, false), live).unwrap();
        assert_eq!(real.num_layers(), 18);
    }
}
