//! The model as ONNX, in the folder that Transformers.js reads: in Node.js, and in a browser on WebGPU
//! or in WebAssembly.
//!
//! ```no_run
//! # use emoji_lab::prelude::*;
//! # use emoji_lab::export::{OnnxConfig, export_onnx_with};
//! let model = load_model("myemoji-merged", &Device::Cpu)?;
//! let report = export_onnx(&model, "myemoji-onnx", &[OnnxVariant::Q8, OnnxVariant::Q4])?;
//! println!("{report}");
//! // For long texts; beside the safetensors of a folder that goes to the Hub:
//! let config = OnnxConfig { context: 8192, ..OnnxConfig::default() };
//! export_onnx_with(&model, "myemoji-merged", &config)?;
//! # Ok::<(), Error>(())
//! ```
//!
//! | file | what |
//! |---|---|
//! | `config.json`, `generation_config.json` | the model's, and what Transformers.js looks for |
//! | `tokenizer.json`, `tokenizer_config.json`, … | the tokenizer with its chat template |
//! | `onnx/model.onnx`, `model_quantized.onnx`, `model_q4.onnx` | the graph, by variant |
//! | `onnx/….onnx_data` | the weights of the graph of this name |

mod blocks;
mod graph;
mod proto;
mod report;
mod variant;
mod weights;

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value, json};

pub use report::{OnnxFile, OnnxReport};
pub use variant::OnnxVariant;

use super::source::parameters;
use super::write_tensors;
use crate::error::{Error, Result};
use crate::files::{write_bytes_atomic, write_into_dir};
use crate::model::{Gemma3Config, Model};
use blocks::BLOCK;
use graph::Graph;

/// What the width of a head must be a multiple of.
const HEAD: usize = 16;
/// The folder of graphs and weights.
pub(super) const FOLDER: &str = "onnx";

/// The settings of [`export_onnx_with`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnnxConfig {
    /// In which precisions the model is written, each in files of its own.
    pub variants: Vec<OnnxVariant>,
    /// How many tokens a question and its answer may have together; at most the model's own
    /// `max_position_embeddings`. For each of them a file is eight bytes longer for each number of a head: 2 kB
    /// of Gemma 3 270M.
    pub context: usize,
}

impl Default for OnnxConfig {
    fn default() -> Self {
        Self { variants: vec![OnnxVariant::Q8], context: 2048 }
    }
}

/// Writes `model` as ONNX into the folder `dir`, as Transformers.js reads it, in each of `variants`. The
/// model reads up to 2,048 tokens then; [`export_onnx_with`] has the other choices.
///
/// Texts are asked one at a time, or several that have as many tokens: padding, which Transformers.js adds
/// to the left of shorter ones, would be taken for a part of them.
///
/// # Errors
/// As [`export_onnx_with`].
pub fn export_onnx(model: &Model, dir: impl AsRef<Path>, variants: &[OnnxVariant]) -> Result<OnnxReport> {
    export_onnx_with(model, dir, &OnnxConfig { variants: variants.to_vec(), ..OnnxConfig::default() })
}

/// [`export_onnx`] with settings.
///
/// The weights are written matrix by matrix, so that there is never a second model in memory. All files
/// take their places when all of them are on disk; what else is in the folder, which is made if it is
/// missing, stays, but for a `config.json`, `generation_config.json` and tokenizer, in whose places the
/// model's come.
///
/// # Errors
/// [`Error::Setting`] for no variant or no context; [`Error::Model`] if the model has an adapter that is
/// not merged, heads whose width is no multiple of 16, rows that cannot be cut into blocks of 32, or values
/// that are no numbers; [`Error::Io`] if it cannot be written. The folder is as it was then.
pub fn export_onnx_with(model: &Model, dir: impl AsRef<Path>, config: &OnnxConfig) -> Result<OnnxReport> {
    let started = Instant::now();
    let dir = dir.as_ref();
    let shape = model.gemma.config();
    shape.validate(&model.origin)?;
    if config.context == 0 {
        return Err(Error::setting(
            "context",
            0,
            "use the number of tokens of the longest question and answer",
        ));
    }
    let context = config.context.min(shape.max_position_embeddings);
    let variants: Vec<OnnxVariant> =
        OnnxVariant::ALL.into_iter().filter(|variant| config.variants.contains(variant)).collect();
    if variants.is_empty() {
        return Err(Error::setting("variants", "[]", "name at least one: OnnxVariant::Q8, Q4 or Fp32"));
    }
    if !shape.head_dim.is_multiple_of(HEAD) {
        let problem = format!("head_dim is {}, onnxruntime attends with multiples of {HEAD}", shape.head_dim);
        return Err(Error::model(&model.origin, problem, "Export it with export_gguf"));
    }
    if variants != [OnnxVariant::Fp32] {
        refuse_short_rows(shape, &model.origin)?;
    }
    let sources = parameters(&model.gemma, &model.origin)?;

    let mut files = vec![];
    write_into_dir(dir, "config.json", |stage| {
        model.tokenizer.write_files(stage)?;
        write_json(&stage.join("config.json"), &settings(model, &variants)?)?;
        write_json(&stage.join("generation_config.json"), &model.generation_config)?;
        let folder = stage.join(FOLDER);
        fs::create_dir(&folder).map_err(|e| Error::io(dir, "creating a folder in it", e))?;
        for variant in &variants {
            let started = Instant::now();
            let graph = Graph::new(shape, &sources, *variant, context, &model.origin)?;
            let (name, data) = (variant.file(), variant.data_file());
            let bytes = graph.file(&data);
            write_bytes_atomic(folder.join(name), &bytes)?;
            write_tensors(&folder.join(data), |out| graph.weights.write(out, &model.origin))?;
            let (graph_bytes, data_bytes) = (bytes.len() as u64, graph.weights.bytes());
            let seconds = started.elapsed().as_secs_f64();
            files.push(OnnxFile { variant: *variant, name, graph_bytes, data_bytes, seconds });
        }
        Ok(())
    })?;
    Ok(OnnxReport {
        dir: dir.to_path_buf(),
        files,
        context,
        notes: notes(dir, &variants),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Blocks are cut from rows; a row that a block would not fill would be cut otherwise by every reader.
fn refuse_short_rows(config: &Gemma3Config, origin: &str) -> Result<()> {
    for (name, columns) in [
        ("hidden_size", config.hidden_size),
        ("intermediate_size", config.intermediate_size),
        ("num_attention_heads · head_dim", config.num_attention_heads * config.head_dim),
    ] {
        if !columns.is_multiple_of(BLOCK) {
            let problem = format!("{name} is {columns}, which cannot be cut into blocks of {BLOCK}");
            return Err(Error::model(origin, problem, "Export it as OnnxVariant::Fp32"));
        }
    }
    Ok(())
}

/// `config.json`: the model's, with what Transformers.js is to take where a caller does not say.
fn settings(model: &Model, variants: &[OnnxVariant]) -> Result<Value> {
    let mut config = model.gemma.config().to_json();
    config["eos_token_id"] = json!(model.stop_ids()?);
    let files = variants.iter().map(|variant| (variant.file().to_string(), json!(1)));
    // Eight bits before 32, and before four: what hardly changes an answer and fits.
    let first =
        [OnnxVariant::Q8, OnnxVariant::Fp32, OnnxVariant::Q4].into_iter().find(|v| variants.contains(v));
    config["transformers.js_config"] = json!({
        "dtype": first.map(OnnxVariant::as_str),
        "use_external_data_format": files.collect::<Map<_, _>>(),
    });
    Ok(config)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_bytes_atomic(path, format!("{value:#}\n").as_bytes())
}

/// Names what an earlier export left beside the files.
fn notes(dir: &Path, variants: &[OnnxVariant]) -> Vec<String> {
    let left = OnnxVariant::ALL
        .into_iter()
        .filter(|variant| !variants.contains(variant))
        .map(OnnxVariant::file)
        .filter(|name| dir.join(FOLDER).join(name).exists());
    left.map(|name| format!("{FOLDER}/{name} was there before, and is not this model's.")).collect()
}

#[cfg(test)]
mod tests;
