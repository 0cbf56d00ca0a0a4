//! A model as a transformers folder.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use super::config::Gemma3Config;
use super::parameters::tensor_shapes;
use super::safetensors::write_safetensors;
use super::tokenizer::{Tokenizer, write_json};
use crate::error::{Error, Result};
use crate::files::write_into_dir;

/// Writes a folder that transformers' `from_pretrained` and `load_model` read: `config.json`,
/// `generation_config.json`, `model.safetensors` and the tokenizer's files.
///
/// `tensors` has transformers' names; those that the configuration does not ask for are left out,
/// among them the `lm_head.weight` of a tied model. They are written as `dtype`: F32 or BF16.
///
/// What else is in `dir` stays, as with transformers. The model's own files take their places once all
/// of them are on disk, `config.json` last. Shards of another model in it stay too: readers take
/// `model.safetensors` before them.
///
/// # Errors
/// [`Error::Model`] that names a missing tensor or one of another shape, [`Error::Setting`] for
/// another dtype, [`Error::Io`] if the folder cannot be written; it is as it was then.
pub fn save_pretrained_folder(
    dir: impl AsRef<Path>,
    config: &Gemma3Config,
    tensors: &BTreeMap<String, Tensor>,
    tokenizer: &Tokenizer,
    generation_config: &Value,
    dtype: DType,
) -> Result<()> {
    let write_tokenizer = |stage: &Path| tokenizer.write_files(stage);
    save_folder(dir.as_ref(), config, tensors, write_tokenizer, generation_config, dtype)
}

/// [`save_pretrained_folder`], with what writes the tokenizer's files into the folder that it is given.
///
/// # Errors
/// As [`save_pretrained_folder`].
pub(crate) fn save_folder(
    dir: &Path,
    config: &Gemma3Config,
    tensors: &BTreeMap<String, Tensor>,
    write_tokenizer: impl FnOnce(&Path) -> Result<()> + Send,
    generation_config: &Value,
    dtype: DType,
) -> Result<()> {
    let dtype_name = match dtype {
        DType::F32 => "float32",
        DType::BF16 => "bfloat16",
        other => {
            let help = "F32 and BF16 can be saved (Gemma 3 overflows in F16)";
            return Err(Error::setting("dtype", format!("{other:?}"), help));
        }
    };
    config.validate(&dir.display().to_string())?;
    let mut chosen = BTreeMap::new();
    for (name, shape) in tensor_shapes(config) {
        let help = "The weights and the configuration do not belong together";
        let wrong = |problem: String| Error::model(dir.display(), problem, help);
        let tensor =
            tensors.get(&name).ok_or_else(|| wrong(format!("cannot be saved without tensor {name}")))?;
        if tensor.dims() != shape.as_slice() {
            return Err(wrong(format!(
                "cannot be saved: tensor {name} has shape {:?}, the configuration says {shape:?}",
                tensor.dims()
            )));
        }
        chosen.insert(name, tensor.clone());
    }
    let mut config_json = config.to_json();
    config_json["dtype"] = json!(dtype_name);
    // transformers 4 calls it so.
    config_json["torch_dtype"] = json!(dtype_name);

    write_into_dir(dir, "config.json", |stage| {
        write_json(&stage.join("config.json"), &config_json)?;
        write_json(&stage.join("generation_config.json"), generation_config)?;
        // Beside the tensors, which wait for the disk.
        let (tokenizer, tensors) = rayon::join(
            || write_tokenizer(stage),
            || write_safetensors(stage.join("model.safetensors"), &chosen, Some(dtype)),
        );
        tokenizer.and(tensors)
    })
}

/// The `generation_config.json` that Gemma 3 comes with, with this tokenizer's stop tokens.
pub fn gemma_generation_config(tokenizer: &Tokenizer) -> Value {
    json!({
        "bos_token_id": tokenizer.bos(),
        "do_sample": true,
        "eos_token_id": tokenizer.stop_ids(),
        "pad_token_id": tokenizer.pad(),
        "top_k": 64,
        "top_p": 0.95,
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::model::gguf::writer::{golden_config, golden_weights};
    use crate::model::gguf_tokenizer::tests::tiny_tokenizer;
    use crate::model::open_pretrained;

    fn save(
        dir: &Path,
        config: &Gemma3Config,
        tensors: &BTreeMap<String, Tensor>,
        dtype: DType,
    ) -> Result<()> {
        let tokenizer = tiny_tokenizer();
        let generation = gemma_generation_config(&tokenizer);
        save_pretrained_folder(dir, config, tensors, &tokenizer, &generation, dtype)
    }

    #[test]
    fn what_it_saves_opens_again() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        let golden = golden_weights();
        save(&dir, &golden_config(), &golden.tensors, DType::F32).unwrap();
        let model = open_pretrained(dir.to_str().unwrap()).unwrap();
        assert_eq!(model.config, golden_config());
        assert_eq!(model.generation_config["eos_token_id"], json!([1, 6]));
        assert_eq!(model.weights.tensors.len(), golden.tensors.len());
        for (name, tensor) in &golden.tensors {
            let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(&model.weights.tensors[name]), bits(tensor), "{name}");
        }
        // In place of itself, in bf16: half the size.
        save(&dir, &golden_config(), &golden.tensors, DType::BF16).unwrap();
        let size = std::fs::metadata(dir.join("model.safetensors")).unwrap().len();
        assert!(size < 2 * golden.parameters() as u64 + 20_000, "{size}");
        assert!(open_pretrained(dir.to_str().unwrap()).is_ok());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1, "nothing is left beside it");
        // What else is there stays, and what is left of a sharded model is not read in its place.
        std::fs::write(dir.join("notes.txt"), "mine").unwrap();
        std::fs::write(dir.join("model.safetensors.index.json"), "{\"weight_map\": {}}").unwrap();
        save(&dir, &golden_config(), &golden.tensors, DType::F32).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("notes.txt")).unwrap(), "mine");
        assert!(open_pretrained(dir.to_str().unwrap()).is_ok());
    }

    #[test]
    fn a_tied_model_has_no_head_and_an_untied_one_does() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        let mut tensors = golden_weights().tensors;
        let head = Tensor::ones((512, 64), DType::F32, &Device::Cpu).unwrap();
        tensors.insert("lm_head.weight".into(), head);
        save(&dir, &golden_config(), &tensors, DType::F32).unwrap();
        let model = open_pretrained(dir.to_str().unwrap()).unwrap();
        assert!(!model.weights.tensors.contains_key("lm_head.weight"));
        let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
        assert!(!String::from_utf8_lossy(&bytes[..8000]).contains("lm_head"));
        let untied = Gemma3Config { tie_word_embeddings: false, ..golden_config() };
        save(&dir, &untied, &tensors, DType::F32).unwrap();
        let model = open_pretrained(dir.to_str().unwrap()).unwrap();
        assert!(!model.config.tie_word_embeddings);
        assert!(model.weights.tensors.contains_key("lm_head.weight"));
    }

    #[test]
    fn an_incomplete_model_leaves_what_was_there() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        let mut tensors = golden_weights().tensors;
        save(&dir, &golden_config(), &tensors, DType::F32).unwrap();
        tensors.remove("model.norm.weight");
        let said = save(&dir, &golden_config(), &tensors, DType::F32).unwrap_err().to_string();
        assert!(said.contains("without tensor model.norm.weight"), "{said}");
        let said = save(&dir, &golden_config(), &tensors, DType::F16).unwrap_err().to_string();
        assert!(said.contains("dtype = F16"), "{said}");
        assert!(open_pretrained(dir.to_str().unwrap()).is_ok());
    }
}
