//! The model's tensors in a GGUF's order, each with what it is stored as.

use std::io::{self, Write};

use candle_core::{DType, Device};

use super::gguf_type::GgufType;
use super::quantize::{largest, largest_of, write_values};
use crate::error::{Error, Result};
use crate::host;
use crate::model::gguf::{Kind, Out};
use crate::model::{Gemma3, Parameter};
use crate::ops::lazy::LazyTensor;
use crate::ops::lora_linear::Weight;
use crate::quant::Nf4Tensor;

/// Tensors begin at multiples of this in the file; what a GGUF has without `general.alignment`.
pub(super) const ALIGNMENT: u64 = 32;

/// Where the values are.
enum Source<'a> {
    Dense(&'a LazyTensor),
    Nf4(&'a Nf4Tensor),
}

/// A tensor that is to be written.
pub(super) struct Stored<'a> {
    /// llama.cpp's name.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Whether its rows cannot be cut into blocks, so that it is stored otherwise than asked for.
    pub(super) fell_back: bool,
    is_norm: bool,
    dims: Vec<usize>,
    source: Source<'a>,
}

/// All tensors of `gemma`. `origin` names the model in errors.
///
/// # Errors
/// [`Error::Model`] if a layer has an adapter, or rows stand in place of the embedding's: a GGUF of a
/// model has no place for them.
pub(super) fn tensors<'a>(gemma: &'a Gemma3, kind: GgufType, origin: &str) -> Result<Vec<Stored<'a>>> {
    let dense =
        |parameter: Parameter, values: &'a LazyTensor| Stored::new(parameter, Source::Dense(values), kind);
    let not_merged = || {
        let help = "Merge the saved adapter with merge_adapters, and export what that gives";
        Error::model(origin, "its adapter is not merged", help)
    };
    if gemma.token_rows.is_some() {
        return Err(not_merged());
    }
    let mut found = vec![dense(Parameter::EmbedTokens, &gemma.embed_tokens.value)];
    for layer in &gemma.layers {
        for (which, linear) in layer.linears() {
            if linear.lora.is_some() {
                return Err(not_merged());
            }
            let source = match &linear.weight {
                Weight::Dense(values) => Source::Dense(values),
                Weight::Nf4(values) => Source::Nf4(values),
            };
            found.push(Stored::new(Parameter::Linear(layer.index, which), source, kind));
        }
        for (which, norm) in layer.norms() {
            found.push(dense(Parameter::Norm(layer.index, which), &norm.weight.value));
        }
    }
    found.push(dense(Parameter::FinalNorm, &gemma.norm.weight.value));
    if let Some(head) = &gemma.lm_head {
        found.push(dense(Parameter::LmHead, &head.value));
    }
    Ok(found)
}

impl<'a> Stored<'a> {
    fn new(parameter: Parameter, source: Source<'a>, kind: GgufType) -> Self {
        let dims = match &source {
            Source::Dense(values) => values.dims().to_vec(),
            Source::Nf4(values) => values.dims().to_vec(),
        };
        let wanted = match kind {
            // llama.cpp's own: four bits for the embedding cost more than they save.
            GgufType::Q4_0 if parameter.is_embedding() => Kind::Q8_0,
            _ if parameter.is_norm() => Kind::F32,
            _ => kind.kind(),
        };
        let row = dims.last().copied().unwrap_or(0);
        let fits = row.is_multiple_of(wanted.block_values());
        Self {
            // Every parameter of a model has one; a test holds that.
            name: parameter.gguf_name().unwrap_or_else(|| parameter.name()),
            is_norm: parameter.is_norm(),
            kind: if fits { wanted } else { Kind::F16 },
            fell_back: !fits,
            dims,
            source,
        }
    }

    /// How many values it has.
    pub(super) fn values(&self) -> u64 {
        self.dims.iter().map(|dim| *dim as u64).product()
    }

    /// Its bytes in the file, without what fills up to the next tensor.
    pub(super) fn bytes(&self) -> u64 {
        self.values() / self.kind.block_values() as u64 * self.kind.block_bytes() as u64
    }

    /// Its entry in the file's list: name, dimensions innermost first, type, where its data begin.
    pub(super) fn entry(&self, out: Out, offset: u64) -> Out {
        let out = out.text(&self.name).u32(self.dims.len() as u32);
        let out = self.dims.iter().rev().fold(out, |out, dim| out.u64(*dim as u64));
        out.u32(self.kind.id()).u64(offset)
    }

    /// Writes its data.
    ///
    /// # Errors
    /// [`Error::Model`] in the inner result if a value cannot be held, the system's in the outer.
    pub(super) fn write(&self, out: &mut dyn Write, origin: &str) -> io::Result<Result<()>> {
        let mut done = Ok(Ok(()));
        let read = self.read(|values| done = self.write_values(out, values, origin));
        match read {
            Ok(()) => done,
            Err(error) => Ok(Err(error)),
        }
    }

    fn write_values(&self, out: &mut dyn Write, values: &[f32], origin: &str) -> io::Result<Result<()>> {
        let (most, limit) = (largest(values), largest_of(self.kind));
        if most > limit {
            let problem = match most.is_finite() {
                true => format!(
                    "tensor {} has a value of {most:e}, the most in {} is {limit:e}",
                    self.name,
                    self.kind.name()
                ),
                false => format!("tensor {} has values that are no numbers", self.name),
            };
            let help = match most.is_finite() {
                true => "Export it as BF16 or F32",
                false => "Look at the training's losses: the model answers nothing of use",
            };
            return Ok(Err(Error::model(origin, problem, help)));
        }
        write_values(out, values, self.kind).map(Ok)
    }

    /// Hands out its values as f32, norms plus one: so llama.cpp multiplies with them.
    fn read(&self, f: impl FnOnce(&[f32])) -> Result<()> {
        let dense = match &self.source {
            Source::Nf4(packed) => {
                f(&packed.dequantize_vec());
                return Ok(());
            }
            Source::Dense(values) => values.to_tensor()?,
        };
        let copy;
        let plain = match dense.dtype() == DType::F32 && dense.device().is_cpu() && dense.is_contiguous() {
            true => &dense,
            false => {
                copy = dense.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.contiguous()?;
                &copy
            }
        };
        host::read(plain, |values| {
            match self.is_norm {
                true => f(&values.iter().map(|value| value + 1.0).collect::<Vec<_>>()),
                false => f(values),
            }
            Ok(())
        })?;
        Ok(())
    }
}
