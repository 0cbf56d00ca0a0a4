//! Gemma 3 from a `.gguf` file (llama.cpp's format): shape, weights and tokenizer, all from the
//! one file.

mod config;
mod cursor;
mod header;
mod out;
mod parts;
mod sampling;

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::config::Gemma3Config;
use super::gguf_tokenizer::{TokenList, tokenizer_from_list};
use super::kept::{Matrix, keep};
use super::parameters::Parameter;
use super::safetensors::map_file;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use crate::error::{Error, Result};
use crate::host;
use crate::ops::lazy::LazyTensor;
pub(crate) use crate::quant::blocks::Kind;
use crate::quant::blocks::round_to_bf16;
use header::{Header, Meta};
pub(crate) use out::Out;
use parts::{Parts, all_parts, part_of};

/// What to do with the values that come out of a file's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rounding {
    /// Round each to the nearest bf16, as `from_pretrained(gguf_file=…, dtype=torch.bfloat16)`
    /// does. Gemma 3 is published in bf16: these are the values that a file's blocks stand for.
    #[default]
    Bf16,
    /// Keep them in f32.
    None,
}

/// What a `.gguf` file holds.
#[derive(Debug, Clone)]
pub struct GgufModel {
    /// The model's shape.
    pub config: Gemma3Config,
    /// The dequantised weights.
    pub weights: Weights,
    /// The tokenizer, rebuilt from the file's tokens and scores.
    pub tokenizer: Tokenizer,
    /// The file's settings of generation (`general.sampling.*`) in the form of a
    /// `generation_config.json`, without stop tokens; `None` if it has none.
    pub generation_config: Option<Value>,
}

/// Reads a Gemma 3 from the `.gguf` file `path`; of a model that is split into several
/// (`NAME-00001-of-00003.gguf`), from all of them, whichever is named.
///
/// Tensors of F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1 and Q4_0 are read. Norm
/// weights are stored plus one in a GGUF and come out as transformers has them; like transformers,
/// this takes the one away before it rounds.
///
/// # Errors
/// [`Error::Model`] that names the file, and the tensor or key, if the file is damaged or cut
/// short, is not a Gemma 3, has tensors stored in another way, or is a part whose others are not
/// beside it.
pub fn open_gguf(path: impl AsRef<Path>, rounding: Rounding) -> Result<GgufModel> {
    read_gguf(path.as_ref(), rounding).map(GgufModel::made)
}

/// [`open_gguf`], weights left as the file has them.
pub(super) fn read_gguf(path: &Path, rounding: Rounding) -> Result<GgufModel> {
    let origin = path.display().to_string();
    let bytes = map_file(path)?;
    let header = Header::read(&bytes, &origin)?;
    let Some((number, count)) = part_of(&header.metadata) else {
        return from_parts(&Parts(vec![(&bytes, header)]), &origin, rounding);
    };
    let paths = all_parts(path, number, count)?;
    let files = paths.iter().map(|path| map_file(path)).collect::<Result<Vec<_>>>()?;
    let mut parts = Vec::with_capacity(files.len());
    for (n, (path, bytes)) in (1..).zip(paths.iter().zip(&files)) {
        let origin = path.display().to_string();
        let header = Header::read(bytes, &origin)?;
        if part_of(&header.metadata) != Some((n, count)) {
            let problem = format!("its name says part {n} of {count}, its metadata says something else");
            return Err(Error::model(origin, problem, "Fetch the parts of one model again"));
        }
        parts.push((&bytes[..], header));
    }
    from_parts(&Parts(parts), &origin, rounding)
}

/// [`open_gguf`] for a file that is in memory. `origin` names it in errors.
///
/// # Errors
/// As [`open_gguf`].
pub fn gguf_from_bytes(bytes: &[u8], origin: &str, rounding: Rounding) -> Result<GgufModel> {
    let header = Header::read(bytes, origin)?;
    if let Some((number, count)) = part_of(&header.metadata) {
        let problem = format!("it is part {number} of {count} of a split model");
        return Err(Error::model(origin, problem, "Open it by its path, with the other parts beside it"));
    }
    from_parts(&Parts(vec![(bytes, header)]), origin, rounding).map(GgufModel::made)
}

impl GgufModel {
    fn made(self) -> Self {
        Self { weights: self.weights.made(), ..self }
    }
}

fn from_parts(parts: &Parts, origin: &str, rounding: Rounding) -> Result<GgufModel> {
    let config = config::read_config(parts, origin)?;
    // Both take about a second for the real model, and neither needs the other.
    let (weights, tokenizer) = rayon::join(
        || read_weights(parts, &config, origin, rounding),
        || read_tokenizer(parts, &config, origin),
    );
    let tokenizer = tokenizer?;
    let generation_config = sampling::read_sampling(parts, &tokenizer);
    Ok(GgufModel { weights: weights?, tokenizer, config, generation_config })
}

/// A tensor of the file, and what it is to become.
struct Read<'a> {
    parameter: Parameter,
    shape: Vec<usize>,
    kind: Kind,
    bytes: &'a [u8],
}

impl Read<'_> {
    fn values(&self, rounding: Rounding) -> Vec<f32> {
        let mut values = self.kind.dequantize(self.bytes);
        if self.parameter.is_norm() {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        if rounding == Rounding::Bf16 {
            round_to_bf16(&mut values);
        }
        values
    }

    /// Itself as a matrix that stays as it is stored: in few bits, if the values are exactly what the file says.
    fn kept(&self, rounding: Rounding) -> Option<Matrix<'_>> {
        let few = !matches!(self.kind, Kind::F32 | Kind::F16);
        match self.shape[..] {
            [outs, ins] if few && rounding == Rounding::None => Some(Matrix {
                name: self.parameter.name(),
                kind: self.kind,
                bytes: self.bytes,
                dims: (outs, ins),
            }),
            _ => None,
        }
    }
}

fn read_weights(parts: &Parts, config: &Gemma3Config, origin: &str, rounding: Rounding) -> Result<Weights> {
    let read = |parameter: Parameter| find(parts, config, origin, parameter);
    let all: Vec<Read<'_>> = Parameter::all(config).into_iter().map(read).collect::<Result<_>>()?;
    let kept: Vec<Matrix<'_>> = all.iter().filter_map(|read| read.kept(rounding)).collect();
    let others: Vec<&Read<'_>> = all.iter().filter(|read| read.kept(rounding).is_none()).collect();
    let mut weights: BTreeMap<String, LazyTensor> = keep(kept, &|_| ())?.into_iter().collect();
    let values: Vec<Vec<f32>> = others.par_iter().map(|read| read.values(rounding)).collect();
    for (read, values) in others.into_iter().zip(values) {
        weights.insert(read.parameter.name(), host::tensor(values, read.shape.as_slice())?.into());
    }
    Ok(Weights::of_file(origin, weights))
}

/// The tensor of `parameter`, if it is there, can be read and has its shape.
fn find<'a>(
    parts: &'a Parts<'a>,
    config: &Gemma3Config,
    origin: &str,
    parameter: Parameter,
) -> Result<Read<'a>> {
    let (name, shape) = (parameter.name(), parameter.shape(config, 0));
    let stored = parameter.gguf_name().unwrap_or_default();
    if let Some(kind) = parts.unread(&stored) {
        let problem =
            format!("tensor {stored} is stored as {kind}, which is not read here; {}", Kind::ALL_NAMES);
        return Err(Error::model(
            origin,
            problem,
            "Most repositories of .gguf files have one in Q8_0 or Q4_K_M",
        ));
    }
    let (bytes, info) = parts.tensor(&stored).ok_or_else(|| {
        let help = "The file is incomplete or not a Gemma 3 text model";
        Error::model(origin, format!("no tensor {stored} ({name})"), help)
    })?;
    if info.shape != shape {
        let problem = format!("tensor {stored} has shape {:?}, the metadata says {shape:?}", info.shape);
        return Err(Error::model(origin, problem, "The file contradicts itself: fetch another"));
    }
    Ok(Read { parameter, shape, kind: info.kind, bytes })
}

fn read_tokenizer(parts: &Parts, config: &Gemma3Config, origin: &str) -> Result<Tokenizer> {
    let text = |key| match parts.meta(key) {
        Some(Meta::Text(text)) => Some(*text),
        _ => None,
    };
    let id = |key| match parts.meta(key) {
        Some(Meta::Unsigned(id)) => u32::try_from(*id).ok(),
        Some(Meta::Signed(id)) => u32::try_from(*id).ok(),
        _ => None,
    };
    let wrong = |key: &str, wanted: &str| {
        let problem = format!("{key} in its metadata is not {wanted}");
        Err(Error::model(origin, problem, "A .gguf made by llama.cpp has it so"))
    };
    let kind = text("tokenizer.ggml.model").unwrap_or("missing");
    if kind != "llama" {
        let problem = format!("tokenizer.ggml.model is {kind}, Gemma 3's is llama");
        return Err(Error::model(origin, problem, "Choose a .gguf made from Gemma 3's own tokenizer"));
    }
    let Some(Meta::Texts(tokens)) = parts.meta("tokenizer.ggml.tokens") else {
        return wrong("tokenizer.ggml.tokens", "a list of texts");
    };
    let scores = match parts.meta("tokenizer.ggml.scores") {
        None => None,
        Some(Meta::Floats(scores)) => Some(scores.as_slice()),
        Some(_) => return wrong("tokenizer.ggml.scores", "a list of numbers"),
    };
    let types = match parts.meta("tokenizer.ggml.token_type") {
        None => None,
        Some(Meta::Signeds(types)) => Some(types.as_slice()),
        Some(_) => return wrong("tokenizer.ggml.token_type", "a list of whole numbers"),
    };
    let list = TokenList {
        tokens,
        scores,
        types,
        rows: config.vocab_size,
        bos: config.bos_token_id,
        eos: config.eos_token_ids.first().copied().unwrap_or(1),
        pad: config.pad_token_id,
        unk: id("tokenizer.ggml.unknown_token_id"),
        model_max_length: config.max_position_embeddings,
        chat_template: text("tokenizer.chat_template"),
    };
    tokenizer_from_list(&list, origin)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;
