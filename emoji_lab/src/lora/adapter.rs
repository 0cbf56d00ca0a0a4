//! Adapter folders: `adapter_config.json` and `adapter_model.safetensors`, PEFT's and ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::Tensor;

use super::adapter_config::AdapterConfig;
use super::{folder, names};
use crate::display::say;
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::model::{LinearName, Parameter, layer_of, read_safetensors, write_safetensors};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(super) const TENSOR_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before a module's name: its own wrapper, and LoRA's.
pub(super) const PREFIX: &str = "base_model.model.";

/// A trained adapter: its settings and its tensors.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Rank, scale, layers, base model.
    pub config: AdapterConfig,
    /// By the model's own names, as [`Parameter::name`] gives them. In the tied form head and embedding
    /// are there both, and are one tensor.
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
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let (config_file, tensor_file) = folder::files(dir)?;
        let text = fs::read_to_string(&config_file)
            .map_err(|e| Error::io(&config_file, "reading the adapter's settings", e))?;
        // The settings first: what they refuse should not wait for a gigabyte of tensors.
        let origin = config_file.display().to_string();
        AdapterConfig::from_json(&text, &origin, &LinearName::ALL)?;
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
        let on: BTreeSet<LinearName> =
            tensors.keys().filter_map(|name| Parameter::from_name(name)?.adapts()).collect();
        let found: Vec<LinearName> = on.into_iter().collect();
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
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        write_into_dir(dir, CONFIG_FILE, |stage| self.write_files(stage))
    }

    /// Writes the files of [`save`](Self::save) one by one.
    pub(crate) fn write_files(&self, dir: &Path) -> Result<()> {
        let named = self.tensors.iter().map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone()));
        write_safetensors(dir.join(TENSOR_FILE), &named.collect(), None)?;
        write_bytes_atomic(dir.join(CONFIG_FILE), self.config.to_json().as_bytes())
    }

    /// How many layers have an adapter.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.tensors.keys().filter_map(|name| layer_of(name)).collect::<BTreeSet<_>>().len()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::lora::LoraConfig;
    use crate::model::{EMBED_TOKENS, Gemma3Config, LM_HEAD, LayerType};

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
            for which in LinearName::ALL {
                let [out, width] = which.dims(&model());
                tensors.insert(Parameter::LoraA(layer, which).name(), random([2, width]));
                tensors.insert(Parameter::LoraB(layer, which).name(), random([out, 2]));
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
        short.tensors.remove(&Parameter::LoraB(1, LinearName::VProj).name());
        short.save(dir.path()).unwrap();
        says("no tensor model.layers.1.self_attn.v_proj.lora_B.weight");
        let mut wide = good.clone();
        wide.tensors.insert(Parameter::LoraA(0, LinearName::QProj).name(), random([3, 8]));
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
