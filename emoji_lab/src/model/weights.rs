//! A model's tensors by name, on the CPU in f32, as they came out of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value;

use super::config::Gemma3Config;
use super::names::{LM_HEAD, tensor_shapes, without_prefix};
use super::safetensors::{map_file, tensors_from_bytes};
use crate::error::{Error, Result};

const INCOMPLETE: &str = "The file is incomplete or not a Gemma 3 text model";
const OTHERS: &str = "The weights and the configuration do not belong together";

/// Named tensors (transformers' names, `model.layers.0.self_attn.q_proj.weight`), f32 on the CPU.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    /// Where they came from, for error messages.
    pub origin: String,
    /// The tensors.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// The tensor `name`, which must have the shape `dims`.
    ///
    /// # Errors
    /// [`Error::Model`] that names the tensor if it is missing or has another shape.
    pub fn get(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let tensor = self.tensors.get(name).ok_or_else(|| missing(&self.origin, name))?;
        if tensor.dims() != dims {
            return Err(wrong_shape(&self.origin, name, tensor.dims(), dims));
        }
        Ok(tensor.clone())
    }

    /// The weights in a transformers folder: `model.safetensors`, or the files that
    /// `model.safetensors.index.json` lists.
    ///
    /// F32, F16 and BF16 tensors become f32. Of a multimodal model only the text model is read;
    /// other tensors that the configuration does not ask for are passed over.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Io`] that names the file, and the tensor where there is one,
    /// if a file is missing or damaged, or a tensor is missing or of another shape.
    pub fn from_folder(folder: &Path, config: &Gemma3Config) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.is_file() {
            let origin = single.display().to_string();
            let bytes = map_file(&single)?;
            return Self::from_safetensors_bytes(&bytes, &origin, config);
        }
        if !index.is_file() {
            let mut help = "A transformers folder has one, or model.safetensors.index.json and its shards";
            if folder.join("pytorch_model.bin").is_file() {
                help = "Its pytorch_model.bin is not read here: save the model as safetensors";
            } else if folder.join("adapter_model.safetensors").is_file() {
                help = "It holds an adapter: merge it with merge_adapters(&base_model, &folder)";
            }
            return Err(Error::model(folder.display(), "no model.safetensors in the folder", help));
        }
        let mut wanted = Wanted::new(config);
        let mut tensors = BTreeMap::new();
        for shard in shards(folder, &index)? {
            let origin = shard.display().to_string();
            if !shard.is_file() {
                return Err(Error::model(
                    origin,
                    "the index lists this file and it is not there",
                    "Fetch the missing file, or the whole model again",
                ));
            }
            let bytes = map_file(&shard)?;
            tensors.extend(tensors_from_bytes(&bytes, &origin, |name, shape| {
                wanted.check(&origin, name, shape)
            })?);
        }
        wanted.all_found(&folder.display().to_string())?;
        Ok(Self { origin: folder.display().to_string(), tensors })
    }

    /// The weights in one safetensors file that is in memory. `origin` names it in errors.
    ///
    /// # Errors
    /// As [`Weights::from_folder`].
    pub fn from_safetensors_bytes(bytes: &[u8], origin: &str, config: &Gemma3Config) -> Result<Self> {
        let mut wanted = Wanted::new(config);
        let tensors = tensors_from_bytes(bytes, origin, |name, shape| wanted.check(origin, name, shape))?;
        wanted.all_found(origin)?;
        Ok(Self { origin: origin.to_string(), tensors })
    }

    /// How many values the tensors hold together.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(Tensor::elem_count).sum()
    }
}

/// The tensors that a configuration asks for, and which of them have come.
struct Wanted {
    shapes: BTreeMap<String, Vec<usize>>,
    left: BTreeSet<String>,
}

impl Wanted {
    fn new(config: &Gemma3Config) -> Self {
        let shapes: BTreeMap<_, _> = tensor_shapes(config).into_iter().collect();
        let left = shapes.keys().cloned().collect();
        Self { shapes, left }
    }

    /// The name under which to keep a tensor of a file, or `None` to pass over it.
    fn check(&mut self, origin: &str, name: &str, shape: &[usize]) -> Result<Option<String>> {
        let name = without_prefix(name);
        let Some(dims) = self.shapes.get(&name) else { return Ok(None) };
        if shape != dims.as_slice() {
            return Err(wrong_shape(origin, &name, shape, dims));
        }
        self.left.remove(&name);
        Ok(Some(name))
    }

    fn all_found(&self, origin: &str) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(name) if name == LM_HEAD => Err(Error::model(
                origin,
                format!("no tensor {LM_HEAD}, and the configuration says tie_word_embeddings: false"),
                "Set tie_word_embeddings to true in config.json if the head is the embedding",
            )),
            Some(name) => Err(missing(origin, name)),
        }
    }
}

fn missing(origin: &str, name: &str) -> Error {
    Error::model(origin, format!("no tensor {name}"), INCOMPLETE)
}

fn wrong_shape(origin: &str, name: &str, shape: &[usize], dims: &[usize]) -> Error {
    let problem = format!("tensor {name} has shape {shape:?}, the configuration says {dims:?}");
    Error::model(origin, problem, OTHERS)
}

/// The files that a `model.safetensors.index.json` lists, in order, each once.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let origin = index.display();
    let text = std::fs::read_to_string(index).map_err(|e| Error::io(index, "reading the index", e))?;
    let damaged = |problem: String| Error::model(&origin, problem, "Fetch the file again");
    let value: Value = serde_json::from_str(&text).map_err(|e| damaged(format!("not valid JSON ({e})")))?;
    let map = value
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| damaged("no weight_map in it".to_string()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_plain_file_name(name));
        names.insert(name.ok_or_else(|| damaged(format!("tensor {tensor} is said to be in {file}")))?);
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// An index comes from elsewhere: its files lie beside it, nowhere else.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\'])
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use serde_json::json;

    use super::*;
    use crate::model::gguf::writer::{GOLDEN_BYTES, Random, golden_config, golden_weights};
    use crate::model::safetensors::write_safetensors;

    fn refused(tensors: &BTreeMap<String, Tensor>, config: &Gemma3Config) -> String {
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join("model.safetensors"), tensors, None).unwrap();
        Weights::from_folder(folder.path(), config).expect_err("must be refused").to_string()
    }

    #[test]
    fn every_float_type_becomes_f32() {
        let golden = golden_weights();
        for (dtype, tolerance) in [(DType::F32, 0.0), (DType::BF16, 4e-3), (DType::F16, 5e-4)] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            write_safetensors(&path, &golden.tensors, Some(dtype)).unwrap();
            let weights = Weights::from_folder(folder.path(), &golden_config()).unwrap();
            for (name, tensor) in &golden.tensors {
                let read = &weights.tensors[name];
                assert_eq!((read.dtype(), read.dims()), (DType::F32, tensor.dims()));
                // The values are rounded exactly as candle rounds them.
                let rounded = tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
                let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(bits(read), bits(&rounded), "{name} as {dtype:?}");
                let worst = (read - tensor).unwrap().abs().unwrap().max_all().unwrap();
                assert!(worst.to_scalar::<f32>().unwrap() <= tolerance * 4.0);
            }
        }
    }

    #[test]
    fn says_which_tensor_is_missing_or_misshapen() {
        let (golden, config) = (golden_weights().tensors, golden_config());
        let mut less = golden.clone();
        less.remove("model.layers.2.mlp.up_proj.weight").unwrap();
        assert!(refused(&less, &config).contains("no tensor model.layers.2.mlp.up_proj.weight"));
        let untied = Gemma3Config { tie_word_embeddings: false, ..golden_config() };
        let text = refused(&golden, &untied);
        assert!(text.contains("no tensor lm_head.weight") && text.contains("tie_word_embeddings"), "{text}");
        let wide = Gemma3Config { intermediate_size: 256, ..golden_config() };
        assert!(refused(&golden, &wide).contains("has shape [64, 128], the configuration says [64, 256]"));
        let mut other = golden.clone();
        let integers = Tensor::zeros((64, 128), DType::U8, &Device::Cpu).unwrap();
        other.insert("model.layers.2.mlp.down_proj.weight".into(), integers);
        assert!(refused(&other, &config).contains("down_proj.weight is stored as U8"));
        other.remove("model.layers.2.mlp.down_proj.weight");
        other.insert("vision_tower.weight".into(), Tensor::zeros(3, DType::U8, &Device::Cpu).unwrap());
        other.insert(
            "model.layers.2.mlp.down_proj.weight".into(),
            golden["model.layers.2.mlp.down_proj.weight"].clone(),
        );
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(&folder.path().join("model.safetensors"), &other, None).unwrap();
        assert_eq!(Weights::from_folder(folder.path(), &config).unwrap().tensors.len(), golden.len());
    }

    #[test]
    fn reads_shards_and_multimodal_names() {
        let (golden, config) = (golden_weights().tensors, golden_config());
        for prefix in ["", "language_model.", "model.language_model."] {
            let folder = tempfile::tempdir().unwrap();
            let mut map = serde_json::Map::new();
            let mut parts = [BTreeMap::new(), BTreeMap::new()];
            for (n, (name, tensor)) in golden.iter().enumerate() {
                let name = match prefix {
                    "model.language_model." => name.replacen("model.", prefix, 1),
                    _ => format!("{prefix}{name}"),
                };
                map.insert(name.clone(), json!(format!("part-{}.safetensors", n % 2)));
                parts[n % 2].insert(name, tensor.clone());
            }
            for (n, part) in parts.iter().enumerate() {
                let path = folder.path().join(format!("part-{n}.safetensors"));
                write_safetensors(&path, part, None).unwrap();
            }
            let index = folder.path().join("model.safetensors.index.json");
            std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
            let weights = Weights::from_folder(folder.path(), &config).unwrap();
            assert_eq!(weights.tensors.len(), golden.len());
            std::fs::remove_file(folder.path().join("part-1.safetensors")).unwrap();
            let text = Weights::from_folder(folder.path(), &config).unwrap_err().to_string();
            assert!(text.contains("part-1.safetensors"), "{text}");
        }
    }

    #[test]
    fn an_index_names_files_beside_it_only() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        for (text, wanted) in [
            ("{", "not valid JSON"),
            ("{}", "no weight_map"),
            (r#"{"weight_map": {"a": "../../etc/passwd"}}"#, "tensor a"),
            (r#"{"weight_map": {"a": 5}}"#, "tensor a"),
        ] {
            std::fs::write(&index, text).unwrap();
            let said = Weights::from_folder(folder.path(), &golden_config()).unwrap_err().to_string();
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn damaged_files_are_errors() {
        let config = golden_config();
        let mut random = Random(5);
        let header = 8 + u64::from_le_bytes(GOLDEN_BYTES[..8].try_into().unwrap()) as usize;
        for length in (0..32).chain((0..60).map(|_| random.below(GOLDEN_BYTES.len()))) {
            let said = Weights::from_safetensors_bytes(&GOLDEN_BYTES[..length], "cut.safetensors", &config);
            assert!(said.unwrap_err().to_string().contains("cut.safetensors"));
        }
        for _ in 0..300 {
            let mut bytes = GOLDEN_BYTES.to_vec();
            for _ in 0..1 + random.below(4) {
                let at = random.below(header);
                bytes[at] = [0, 0xFF, b'9', bytes[at] ^ (1 << random.below(8))][random.below(4)];
            }
            // Either it is refused or what changed was a name nobody asked for: no panic.
            let _ = Weights::from_safetensors_bytes(&bytes, "damaged.safetensors", &config);
        }
    }
}
