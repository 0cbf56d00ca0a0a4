//! A model's tensors by name, on the CPU in f32, as they came out of a file.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::error::{Error, Result};

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
        let tensor = self.tensors.get(name).ok_or_else(|| {
            Error::model(
                &self.origin,
                format!("no tensor {name}"),
                "The file is incomplete or not a Gemma 3 text model",
            )
        })?;
        if tensor.dims() != dims {
            return Err(Error::model(
                &self.origin,
                format!("tensor {name} has shape {:?}, the configuration says {dims:?}", tensor.dims()),
                "The weights and the configuration do not belong together",
            ));
        }
        Ok(tensor.clone())
    }
}
