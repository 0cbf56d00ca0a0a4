//! A model's tensors by name, on the CPU in f32, as they came out of a file.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::config::Gemma3Config;
use super::folder;
use super::parameters::{EMBED_TOKENS, LM_HEAD};
use super::safetensors::{map_file, weights_from_bytes, weights_from_map};
use super::shards::{shards, shards_without_index};
use super::wanted::{Wanted, missing, wrong_shape};
use crate::error::{Error, Result};
use crate::ops::lazy::LazyTensor;

/// Named tensors (transformers' names, `model.layers.0.self_attn.q_proj.weight`), f32 on the CPU.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    /// Where they came from, for error messages.
    pub origin: String,
    /// The tensors.
    pub tensors: BTreeMap<String, Tensor>,
    /// What stands as its file has it, and is made a tensor when it is asked for.
    pub(crate) lazy: BTreeMap<String, LazyTensor>,
}

impl Weights {
    /// Tensors that came from `origin`, which names them in errors.
    pub fn new(origin: impl Into<String>, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { origin: origin.into(), tensors, lazy: BTreeMap::new() }
    }

    /// Weights that came from `origin`, some of them as its file has them.
    pub(super) fn of_file(origin: impl Into<String>, weights: BTreeMap<String, LazyTensor>) -> Self {
        let mut all = Self::new(origin, BTreeMap::new());
        for (name, weight) in weights {
            match weight.dense() {
                Some(tensor) => drop(all.tensors.insert(name, tensor.clone())),
                None => drop(all.lazy.insert(name, weight)),
            }
        }
        all
    }

    /// All of them as tensors.
    pub(super) fn made(mut self) -> Self {
        self.tensors.extend(self.lazy.iter().map(|(name, weight)| (name.clone(), Tensor::clone(weight))));
        self
    }

    /// The weight `name`, which must have the shape `dims`.
    ///
    /// # Errors
    /// [`Error::Model`] that names the tensor if it is missing or has another shape.
    pub fn get(&self, name: &str, dims: &[usize]) -> Result<LazyTensor> {
        let weight = self.find(name).ok_or_else(|| missing(&self.origin, name))?;
        if weight.dims() != dims {
            return Err(wrong_shape(&self.origin, name, weight.dims(), dims));
        }
        Ok(weight)
    }

    /// A tensor that was put in place of what the file has wins.
    fn find(&self, name: &str) -> Option<LazyTensor> {
        match (self.tensors.get(name), self.lazy.get(name)) {
            (Some(tensor), Some(weight)) if weight.dense().is_some_and(|own| own.id() == tensor.id()) => {
                Some(weight.clone())
            }
            (Some(tensor), _) => Some(tensor.clone().into()),
            (None, weight) => weight.cloned(),
        }
    }

    /// The weights in a transformers folder: `model.safetensors`, the files that
    /// `model.safetensors.index.json` lists, or all of `model-00001-of-0000N.safetensors` without one.
    ///
    /// F32, F16 and BF16 tensors become f32. Of a multimodal model only the text model is read;
    /// other tensors that the configuration does not ask for are left out and named in a line. A
    /// `lm_head.weight` beside a tied configuration is kept if it is not the embedding.
    ///
    /// # Errors
    /// [`Error::Model`] or [`Error::Io`] that names the file, and the tensor where there is one,
    /// if a file is missing or damaged, or a tensor is missing or of another shape.
    pub fn from_folder(folder: impl AsRef<Path>, config: &Gemma3Config) -> Result<Self> {
        Self::open_folder(folder.as_ref(), config).map(Self::made)
    }

    /// [`Self::from_folder`], weights left as the file has them.
    pub(super) fn open_folder(folder: &Path, config: &Gemma3Config) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.is_file() {
            let origin = single.display().to_string();
            folder::refuse_unfinished(&single)?;
            let map = map_file(&single)?;
            let mut wanted = Wanted::new(config);
            let tensors = weights_from_map(&map, &origin, |name, shape| wanted.check(&origin, name, shape))?;
            return wanted.finish(origin, tensors);
        }
        let shards = match index.is_file() {
            true => shards(folder, &index)?,
            false => shards_without_index(folder)?,
        };
        let origin = folder.display().to_string();
        if shards.is_empty() {
            let help = folder::without_weights(folder);
            return Err(Error::model(origin, "no model.safetensors in the folder", help));
        }
        let missing: Vec<String> =
            shards.iter().filter(|shard| !shard.is_file()).map(|shard| file_name(shard)).collect();
        if let Some(first) = missing.first() {
            let help = folder::in_place_of(folder, first)
                .unwrap_or_else(|| "Fetch the missing file, or the whole model again".to_string());
            let problem = format!(
                "the model is in {} files, and these are not there: {}",
                shards.len(),
                missing.join(", ")
            );
            return Err(Error::model(origin, problem, help));
        }
        let mut wanted = Wanted::new(config);
        let mut tensors = BTreeMap::new();
        for shard in shards {
            let origin = shard.display().to_string();
            folder::refuse_unfinished(&shard)?;
            let map = map_file(&shard)?;
            tensors
                .extend(weights_from_map(&map, &origin, |name, shape| wanted.check(&origin, name, shape))?);
        }
        wanted.finish(origin, tensors)
    }

    /// The weights in one safetensors file that is in memory. `origin` names it in errors.
    ///
    /// # Errors
    /// As [`Weights::from_folder`].
    pub fn from_safetensors_bytes(bytes: &[u8], origin: &str, config: &Gemma3Config) -> Result<Self> {
        Self::open_safetensors_bytes(bytes, origin, config).map(Self::made)
    }

    /// [`Self::from_safetensors_bytes`], weights left as the file has them.
    pub(super) fn open_safetensors_bytes(bytes: &[u8], origin: &str, config: &Gemma3Config) -> Result<Self> {
        let mut wanted = Wanted::new(config);
        let tensors = weights_from_bytes(bytes, origin, |name, shape| wanted.check(origin, name, shape))?;
        wanted.finish(origin.to_string(), tensors)
    }

    /// Whether there is a head that is not the embedding, although `config` says that it is.
    ///
    /// # Errors
    /// Only if candle fails.
    pub(crate) fn has_own_head(&self, config: &Gemma3Config) -> Result<bool> {
        let (Some(head), Some(embedding)) = (self.find(LM_HEAD), self.find(EMBED_TOKENS)) else {
            return Ok(false);
        };
        Ok(config.tie_word_embeddings && !head.equals(&embedding)?)
    }

    /// Unties `config` if [`Self::has_own_head`], and says whether it did; else takes a stored copy
    /// of the embedding out.
    ///
    /// # Errors
    /// Only if candle fails.
    pub(crate) fn settle_head(&mut self, config: &mut Gemma3Config) -> Result<bool> {
        let own = self.has_own_head(config)?;
        if own {
            config.tie_word_embeddings = false;
        } else if config.tie_word_embeddings {
            self.tensors.remove(LM_HEAD);
            self.lazy.remove(LM_HEAD);
        }
        Ok(own)
    }

    /// How many values the tensors hold together.
    pub fn parameters(&self) -> usize {
        let unmade = self.lazy.iter().filter(|(name, _)| !self.tensors.contains_key(*name));
        self.tensors.values().map(Tensor::elem_count).sum::<usize>()
            + unmade.map(|(_, weight)| weight.elem_count()).sum::<usize>()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
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
        write_safetensors(folder.path().join("model.safetensors"), tensors, None).unwrap();
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
        write_safetensors(folder.path().join("model.safetensors"), &other, None).unwrap();
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

    /// The golden model with a head of its own, which counts the tokens on by one.
    fn with_head() -> BTreeMap<String, Tensor> {
        let mut tensors = golden_weights().tensors;
        let embedding = &tensors[EMBED_TOKENS];
        let last = embedding.narrow(0, 511, 1).unwrap();
        let head = Tensor::cat(&[&last, &embedding.narrow(0, 0, 511).unwrap()], 0).unwrap();
        tensors.insert(LM_HEAD.to_string(), head.contiguous().unwrap());
        tensors
    }

    #[test]
    fn a_head_of_its_own_is_kept_and_a_copy_of_the_embedding_is_not() {
        let (own, tied) = (with_head(), golden_config());
        let mut copy = own.clone();
        copy.insert(LM_HEAD.into(), own[EMBED_TOKENS].clone());
        for dtype in [DType::F32, DType::BF16] {
            for prefix in ["", "language_model.", "_orig_mod."] {
                for (tensors, kept) in [(&own, true), (&copy, false)] {
                    let folder = tempfile::tempdir().unwrap();
                    let named: BTreeMap<_, _> = tensors
                        .iter()
                        .map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone()))
                        .collect();
                    write_safetensors(folder.path().join("model.safetensors"), &named, Some(dtype)).unwrap();
                    let mut weights = Weights::from_folder(folder.path(), &tied).unwrap();
                    assert_eq!(weights.tensors.contains_key(LM_HEAD), kept, "{dtype:?} {prefix}");
                    let mut config = tied.clone();
                    assert_eq!(weights.settle_head(&mut config).unwrap(), kept);
                    assert_eq!(config.tie_word_embeddings, !kept);
                }
            }
        }
        // Where the configuration says untied, a head that is the embedding stays a head.
        let untied = Gemma3Config { tie_word_embeddings: false, ..golden_config() };
        let folder = tempfile::tempdir().unwrap();
        write_safetensors(folder.path().join("model.safetensors"), &copy, None).unwrap();
        assert!(Weights::from_folder(folder.path(), &untied).unwrap().tensors.contains_key(LM_HEAD));
        let mut short = own.clone();
        short.insert(LM_HEAD.into(), own[LM_HEAD].narrow(0, 0, 500).unwrap().contiguous().unwrap());
        let said = refused(&short, &tied);
        assert!(
            said.contains("lm_head.weight has shape [500, 64]") && said.contains("tie_word_embeddings"),
            "{said}"
        );
    }

    #[test]
    fn a_model_of_a_tied_configuration_uses_the_head_that_is_there() {
        let weights = Weights::new("test", with_head());
        let device = crate::Device::Cpu;
        let untied = Gemma3Config { tie_word_embeddings: false, ..golden_config() };
        let [ours, wanted] =
            [golden_config(), untied].map(|c| crate::model::Gemma3::new(&c, &weights, &device).unwrap());
        assert!(!ours.config().tie_word_embeddings);
        let tied = crate::model::Gemma3::new(&golden_config(), &golden_weights(), &device).unwrap();
        let prompt = [2, 40, 41];
        assert_eq!(ours.greedy(&prompt, 5).unwrap(), wanted.greedy(&prompt, 5).unwrap());
        assert_eq!(ours.greedy(&prompt, 1).unwrap()[0], (tied.greedy(&prompt, 1).unwrap()[0] + 1) % 512);
    }

    #[test]
    fn double_precision_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut header = String::from("{");
        let mut data: Vec<u8> = vec![];
        for (name, tensor) in &golden_weights().tensors {
            let from = data.len();
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            data.extend(values.iter().flat_map(|value| f64::from(*value).to_le_bytes()));
            let (shape, to) = (tensor.dims(), data.len());
            header += &format!(
                "\"{name}\":{{\"dtype\":\"F64\",\"shape\":{shape:?},\"data_offsets\":[{from},{to}]}},"
            );
        }
        header.pop();
        header += "}";
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let read = Weights::from_folder(folder.path(), &golden_config()).unwrap();
        for (name, tensor) in &golden_weights().tensors {
            let (one, two) = (LazyTensor::from(tensor.clone()), read.tensors[name].clone().into());
            assert!(one.equals(&two).unwrap(), "{name}");
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
