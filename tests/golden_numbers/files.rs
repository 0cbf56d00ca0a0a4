//! Reading the golden files.

use std::collections::HashMap;
use std::path::Path;

use emoji_lab::model::{Gemma3, Gemma3Config, Weights};
use emoji_lab::train::Batch;
use emoji_lab::{DType, Device, Error, Result, Tensor};
use serde_json::Value;

/// A safetensors file's tensors by name.
pub struct Tensors {
    origin: String,
    by_name: HashMap<String, Tensor>,
}

impl Tensors {
    pub fn open(path: &Path) -> Result<Self> {
        let by_name = candle_core::safetensors::load(path, &candle_core::Device::Cpu)?;
        Ok(Self { origin: path.display().to_string(), by_name })
    }

    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.by_name.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    pub fn get(&self, name: &str) -> Result<Tensor> {
        let missing =
            || Error::model(&self.origin, format!("no tensor {name}"), "The golden folder is incomplete");
        self.by_name.get(name).cloned().ok_or_else(missing)
    }

    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.get(name)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }

    fn integers(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.get(name)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
    }

    /// The padded batch under `prefix`, packed.
    pub fn batch(&self, prefix: &str) -> Result<Batch> {
        let part = |name: &str| self.integers(&format!("{prefix}{name}"));
        let columns = self.get(&format!("{prefix}input_ids"))?.dims2()?.1;
        Batch::from_padded(&part("input_ids")?, &part("attention_mask")?, &part("labels")?, columns)
    }

    /// The rows of `logits` `[rows, columns, vocab]` whose token is not padding: `[tokens, vocab]`.
    pub fn unpadded(&self, logits: &str, mask: &[i64]) -> Result<Tensor> {
        let logits = self.get(logits)?.to_dtype(DType::F32)?;
        let kept: Vec<u32> =
            mask.iter().enumerate().filter(|(_, m)| **m != 0).map(|(i, _)| i as u32).collect();
        let kept = Tensor::new(kept, &candle_core::Device::Cpu)?;
        Ok(logits.flatten(0, 1)?.index_select(&kept, 0)?)
    }

    pub fn mask(&self, name: &str) -> Result<Vec<i64>> {
        self.integers(name)
    }
}

pub fn json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading the golden file", e))?;
    parse(&text, path)
}

pub fn json_lines(path: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading the golden file", e))?;
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| parse(line, path)).collect()
}

fn parse(text: &str, path: &Path) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::model(path.display(), e, "The golden file is damaged"))
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().into_iter().flatten().filter_map(|id| id.as_u64()).map(|id| id as u32).collect()
}

/// The transformers folder `dir`, without its tokenizer.
pub fn model(dir: &Path) -> Result<Gemma3> {
    let path = dir.join("config.json");
    let text =
        std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "reading the configuration", e))?;
    let config = Gemma3Config::from_json(&text, &path.display().to_string())?;
    Gemma3::new(&config, &Weights::from_folder(dir, &config)?, &Device::Cpu)
}

/// The largest absolute difference.
pub fn max_difference(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(f64::from((a - b)?.abs()?.max_all()?.to_scalar::<f32>()?))
}

/// ‖a − b‖ / ‖b‖; where b is zero, ‖a‖.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut b.iter().map(|b| f64::from(*b)));
    if size > 0.0 { difference / size } else { difference }
}
