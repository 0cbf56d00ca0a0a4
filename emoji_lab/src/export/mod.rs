//! The model for use elsewhere: one GGUF file for llama.cpp, Ollama, LM Studio and what else reads it, a
//! folder of ONNX files for Transformers.js ([`export_onnx`]), or a web page with it ([`export_web`]).
//!
//! ```no_run
//! # use emoji_lab::prelude::*;
//! # use emoji_lab::export::{GgufConfig, export_gguf_with};
//! let model = load_model("myemoji-merged", &Device::Cpu)?;
//! let report = export_gguf(&model, "myemoji.gguf", GgufType::Q8_0)?;
//! println!("{report}");
//! // For a folder that goes to the Hub: `ollama run hf.co/owner/name` then asks as was trained.
//! let config = GgufConfig { kind: GgufType::Bf16, hub_files: true, ..GgufConfig::default() };
//! export_gguf_with(&model, "hub/myemoji-BF16.gguf", &config)?;
//! # Ok::<(), Error>(())
//! ```

mod gguf_type;
mod metadata;
mod ollama;
mod onnx;
mod report;
mod source;
mod tensors;
mod vocabulary;
mod web;

use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

pub use gguf_type::GgufType;
pub use onnx::{OnnxConfig, OnnxFile, OnnxReport, OnnxVariant, export_onnx, export_onnx_with};
pub use report::{ExportReport, TypeCount};
pub use web::{
    Engine, Library, ServedPage, WebConfig, WebFile, WebReport, export_web, export_web_with, serve_page,
};

use crate::error::{Error, Result};
use crate::files::{write_atomic, write_bytes_atomic, write_into_dir};
use crate::model::Model;
use crate::model::gguf::Out;
use crate::task::SYSTEM_PROMPT;
use metadata::metadata;
use ollama::asking;
use tensors::{ALIGNMENT, Stored, tensors};
use vocabulary::vocabulary;

/// The settings of [`export_gguf_with`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufConfig {
    /// How matrices are stored.
    pub kind: GgufType,
    /// What the model was trained to be told before a text; empty, or blanks, for nothing.
    pub system_prompt: String,
    /// Whether a `Modelfile` for Ollama is written beside the file.
    pub modelfile: bool,
    /// Whether `template`, `system` and `params` are written beside it: what Ollama reads of a
    /// repository on the Hub in place of a `Modelfile`.
    pub hub_files: bool,
}

impl Default for GgufConfig {
    fn default() -> Self {
        Self {
            kind: GgufType::default(),
            system_prompt: SYSTEM_PROMPT.to_string(),
            modelfile: true,
            hub_files: false,
        }
    }
}

/// Writes `model` as the GGUF file `path`: weights as `kind`, tokenizer, chat template, stop tokens
/// and settings of generation in one file; and beside it a `Modelfile`, with which Ollama asks as was
/// trained, with [`SYSTEM_PROMPT`]. [`export_gguf_with`] has the other choices.
///
/// Written are the values that the model computes with. Of one that came from a GGUF or is quantised
/// in NF4 these are the rounded ones.
///
/// # Errors
/// As [`export_gguf_with`].
pub fn export_gguf(model: &Model, path: impl AsRef<Path>, kind: GgufType) -> Result<ExportReport> {
    export_gguf_with(model, path, &GgufConfig { kind, ..GgufConfig::default() })
}

/// [`export_gguf`] with settings.
///
/// The file is written tensor by tensor, so that there is never a second model in memory. It and the
/// files beside it take their places when all of them are on disk; what else is in the folder, which is
/// made if it is missing, stays. A matrix whose rows cannot be cut into blocks of 32 is stored as F16,
/// and said in the report.
///
/// # Errors
/// [`Error::Setting`] for a path that names no file, or one that a `Modelfile` cannot name;
/// [`Error::Model`] if the model has an adapter that is not merged, a tokenizer or shape that a GGUF
/// cannot say, or values that the type cannot hold; [`Error::Io`] if it cannot be written. The folder
/// is as it was then.
pub fn export_gguf_with(model: &Model, path: impl AsRef<Path>, config: &GgufConfig) -> Result<ExportReport> {
    let started = Instant::now();
    let path = path.as_ref();
    let Some(name) = path.file_name() else {
        return Err(Error::setting("path", path.display(), "name a file, as \"myemoji.gguf\""));
    };
    let dir = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let beside = beside(model, &name.to_string_lossy(), config)?;
    if beside.iter().any(|(other, _)| name == *other) {
        return Err(Error::setting("path", path.display(), "another file has this name: end it in .gguf"));
    }

    let mut notes = vec![];
    let list = vocabulary(&model.tokenizer, model.gemma.config().vocab_size, &model.origin)?;
    let meta = metadata(model, &list, config.kind, &mut notes)?;
    let tensors = tensors(&model.gemma, config.kind, &model.origin)?;
    let head = head(&meta, &tensors);
    write_into_dir(dir, &name.to_string_lossy(), |stage| {
        for (name, text) in &beside {
            write_bytes_atomic(stage.join(name), text.as_bytes())?;
        }
        write_file(&stage.join(name), &head, &tensors, &model.origin)
    })?;

    let fell_back: Vec<&str> =
        tensors.iter().filter(|tensor| tensor.fell_back).map(|tensor| tensor.name.as_str()).collect();
    if !fell_back.is_empty() {
        notes.push(format!(
            "Stored as F16, since their rows cannot be cut into blocks of 32: {}.",
            fell_back.join(", ")
        ));
    }
    let bytes = tensors.iter().fold(head.len() as u64, |sum, tensor| sum + padded(tensor.bytes()));
    Ok(ExportReport {
        path: path.to_path_buf(),
        kind: config.kind,
        bytes,
        types: counts(&tensors),
        beside: beside.into_iter().map(|(name, _)| dir.join(name)).collect(),
        notes,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The files to be written beside the one called `gguf`.
fn beside(model: &Model, gguf: &str, config: &GgufConfig) -> Result<Vec<(&'static str, String)>> {
    let mut files = vec![];
    if config.modelfile || config.hub_files {
        let asking = asking(&model.tokenizer, &config.system_prompt, &model.origin)?;
        if config.modelfile {
            files.push(("Modelfile", asking.modelfile(gguf)?));
        }
        if config.hub_files {
            files.extend(asking.hub_files());
        }
    }
    Ok(files)
}

/// Everything before the tensors' data
/// (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
fn head(meta: &metadata::Metadata, tensors: &[Stored]) -> Vec<u8> {
    let mut out = Out(b"GGUF".to_vec()).u32(3).u64(tensors.len() as u64).u64(meta.count);
    out.0.extend(&meta.out.0);
    let mut offset = 0;
    for tensor in tensors {
        out = tensor.entry(out, offset);
        offset += padded(tensor.bytes());
    }
    let mut bytes = out.0;
    bytes.resize(padded(bytes.len() as u64) as usize, 0);
    bytes
}

fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGNMENT)
}

fn write_file(path: &Path, head: &[u8], tensors: &[Stored], origin: &str) -> Result<()> {
    write_tensors(path, |out| {
        out.write_all(head)?;
        for tensor in tensors {
            if let Err(error) = tensor.write(out, origin)? {
                return Ok(Err(error));
            }
            out.write_all(&[0; ALIGNMENT as usize][..(padded(tensor.bytes()) - tensor.bytes()) as usize])?;
        }
        Ok(Ok(()))
    })
}

/// Writes the file `path` as `write` does, whole or not at all: not if there is an error of the system, nor if there
/// is one of ours, in the inner result, which goes round what the writer of files knows.
fn write_tensors(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<Result<()>>) -> Result<()> {
    let mut ours = Ok(());
    let written = write_atomic(path, |out| {
        ours = write(out)?;
        match ours {
            Ok(()) => Ok(()),
            Err(_) => Err(io::Error::other("a tensor cannot be written")),
        }
    });
    ours.and(written)
}

fn counts(tensors: &[Stored]) -> Vec<TypeCount> {
    let mut counts: Vec<TypeCount> = vec![];
    for tensor in tensors {
        let name = tensor.kind.name();
        let at = counts.iter().position(|count| count.name == name).unwrap_or_else(|| {
            counts.push(TypeCount { name: name.to_string(), tensors: 0, values: 0, bytes: 0 });
            counts.len() - 1
        });
        let count = &mut counts[at];
        count.tensors += 1;
        count.values += tensor.values();
        count.bytes += tensor.bytes();
    }
    counts.sort_by_key(|count| std::cmp::Reverse(count.bytes));
    counts
}

#[cfg(test)]
mod tests;
