//! A model's parameters for a file of another program: which there are, and their values in f32.

use candle_core::{DType, Device};

use crate::error::{Error, Result};
use crate::host;
use crate::model::{Gemma3, Parameter};
use crate::ops::lazy::LazyTensor;
use crate::ops::lora_linear::Weight;
use crate::quant::Nf4Tensor;

/// Where a parameter's values are.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Dense(&'a LazyTensor),
    Nf4(&'a Nf4Tensor),
}

/// All parameters of `gemma`, in the order in which they are computed with, the head last and only if it
/// is not the embedding. `origin` names the model in errors.
///
/// # Errors
/// [`Error::Model`] if a layer has an adapter, or rows stand in place of the embedding's: a file of a
/// model has no place for them.
pub(super) fn parameters<'a>(gemma: &'a Gemma3, origin: &str) -> Result<Vec<(Parameter, Source<'a>)>> {
    let not_merged = || {
        let help = "Merge the saved adapter with merge_adapters, and export what that gives";
        Error::model(origin, "its adapter is not merged", help)
    };
    if gemma.token_rows.is_some() {
        return Err(not_merged());
    }
    let mut found = vec![(Parameter::EmbedTokens, Source::Dense(&gemma.embed_tokens.value))];
    for layer in &gemma.layers {
        for (which, linear) in layer.linears() {
            if linear.lora.is_some() {
                return Err(not_merged());
            }
            let source = match &linear.weight {
                Weight::Dense(values) => Source::Dense(values),
                Weight::Nf4(values) => Source::Nf4(values),
            };
            found.push((Parameter::Linear(layer.index, which), source));
        }
        for (which, norm) in layer.norms() {
            found.push((Parameter::Norm(layer.index, which), Source::Dense(&norm.weight.value)));
        }
    }
    found.push((Parameter::FinalNorm, Source::Dense(&gemma.norm.weight.value)));
    if let Some(head) = &gemma.lm_head {
        found.push((Parameter::LmHead, Source::Dense(&head.value)));
    }
    Ok(found)
}

/// The refusal of a tensor that holds infinities or what is no number.
pub(super) fn no_numbers(origin: &str, tensor: &str) -> Error {
    let problem = format!("tensor {tensor} has values that are no numbers");
    Error::model(origin, problem, "Look at the training's losses: the model answers nothing of use")
}

impl<'a> Source<'a> {
    pub(super) fn dims(&self) -> &'a [usize] {
        match self {
            Self::Dense(values) => values.dims(),
            Self::Nf4(values) => values.dims(),
        }
    }

    /// Hands out its values as f32, row by row.
    ///
    /// # Errors
    /// Only if candle fails.
    pub(super) fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
        let dense = match self {
            Self::Nf4(packed) => return Ok(f(&packed.dequantize_vec())),
            Self::Dense(values) => values.to_tensor()?,
        };
        let copy;
        let plain = match dense.dtype() == DType::F32 && dense.device().is_cpu() && dense.is_contiguous() {
            true => &dense,
            false => {
                copy = dense.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
                &copy
            }
        };
        Ok(host::read(plain, |values| Ok(f(values)))?)
    }
}
