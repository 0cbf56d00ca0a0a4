//! The model's tensors in a GGUF's order, each with what it is stored as.

use std::io::{self, Write};

use super::gguf_type::GgufType;
use super::source::{Source, no_numbers, parameters};
use crate::error::{Error, Result};
use crate::model::gguf::{Kind, Out};
use crate::model::{Gemma3, Parameter};
use crate::quant::quantize::{largest, largest_of, write_values};

/// Tensors begin at multiples of this in the file; what a GGUF has without `general.alignment`.
pub(super) const ALIGNMENT: u64 = 32;

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
/// As [`parameters`].
pub(super) fn tensors<'a>(gemma: &'a Gemma3, kind: GgufType, origin: &str) -> Result<Vec<Stored<'a>>> {
    let found = parameters(gemma, origin)?;
    Ok(found.into_iter().map(|(parameter, source)| Stored::new(parameter, source, kind)).collect())
}

impl<'a> Stored<'a> {
    fn new(parameter: Parameter, source: Source<'a>, kind: GgufType) -> Self {
        let dims = source.dims().to_vec();
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
        let read = self.source.read(|values| match self.is_norm {
            // So llama.cpp multiplies with them.
            true => {
                let plus_one: Vec<f32> = values.iter().map(|value| value + 1.0).collect();
                self.write_values(out, &plus_one, origin)
            }
            false => self.write_values(out, values, origin),
        });
        read.unwrap_or_else(|error| Ok(Err(error)))
    }

    fn write_values(&self, out: &mut dyn Write, values: &[f32], origin: &str) -> io::Result<Result<()>> {
        let (most, limit) = (largest(values), largest_of(self.kind));
        if !most.is_finite() {
            return Ok(Err(no_numbers(origin, &self.name)));
        }
        if most > limit {
            let kind = self.kind.name();
            let problem =
                format!("tensor {} has a value of {most:e}, the most in {kind} is {limit:e}", self.name);
            return Ok(Err(Error::model(origin, problem, "Export it as BF16 or F32")));
        }
        write_values(out, values, self.kind).map(Ok)
    }
}
