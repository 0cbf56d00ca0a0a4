//! Exports a model as ONNX, and writes what runtimes must make of it, for `tests/python` and `tests/node`.
//!
//! ```text
//! cargo run --release -p emoji_lab --example export_onnx -- MODEL OUT [--variants fp32,q8,q4]
//!     [--data DATA] [--split FILE] [--rows N] [--logits TOKENS]
//! ```
//!
//! `MODEL` is what `load_model` takes, `DATA` what `load_dataset` does (the embedded rows by default); `FILE`
//! names the held-out rows among them, as `{"test": [3, 14]}`, which are then the ones that are asked. In the
//! folder `OUT` come to lie the model and `ours.json`: the first `N` rows with their texts, token ids of
//! question and answer, this crate's mean loss on them (nats per token), and its greedy answers. With
//! `--logits` also `ours.safetensors`: so many tokens, made up, and the logits after each of them.

#[path = "../questions.rs"]
mod questions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use emoji_lab::export::{OnnxVariant, export_onnx};
use emoji_lab::model::{Model, PackedTokens, load_model, write_safetensors};
use emoji_lab::ops::IGNORE_INDEX;
use emoji_lab::rng::Philox;
use emoji_lab::{Device, Error, Result, Tensor, say};
use serde_json::json;

struct Options {
    model: String,
    out: PathBuf,
    variants: Vec<OnnxVariant>,
    data: Option<String>,
    split: Option<PathBuf>,
    rows: usize,
    logits: usize,
}

fn options() -> Result<Options> {
    let mut plain = vec![];
    let (mut variants, mut rows, mut logits) = (OnnxVariant::ALL.to_vec(), 24, 0);
    let (mut data, mut split) = (None, None);
    let mut arguments = std::env::args().skip(1);
    let number = |value: &str| {
        value.parse::<usize>().map_err(|_| Error::setting("number", value, "use a whole number"))
    };
    while let Some(argument) = arguments.next() {
        if !argument.starts_with("--") {
            plain.push(argument);
            continue;
        }
        let value = arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--variants" => variants = value.split(',').map(str::parse).collect::<Result<_>>()?,
            "--rows" => rows = number(&value)?,
            "--logits" => logits = number(&value)?,
            "--data" => data = Some(value),
            "--split" => split = Some(PathBuf::from(value)),
            _ => {
                let help = "there are --variants, --data, --split, --rows and --logits";
                return Err(Error::setting("option", argument, help));
            }
        }
    }
    let [model, out] = plain.try_into().map_err(|plain: Vec<String>| {
        Error::setting("arguments", plain.join(" "), "give a model and a folder to write to")
    })?;
    Ok(Options { model, out: PathBuf::from(out), variants, data, split, rows, logits })
}

fn main() -> Result<()> {
    let options = options()?;
    let started = Instant::now();
    let model = load_model(&options.model, &Device::Cpu)?;
    say!("{} loaded in {:.1} s", options.model, started.elapsed().as_secs_f64());
    say!("{}", export_onnx(&model, &options.out, &options.variants)?);

    let asked = questions::questions(options.data.as_deref(), options.split.as_deref(), options.rows)?;
    let prompts = questions::prompts(&model, &asked)?;
    let answers = questions::answers(&model.gemma, &model.stop_ids()?, &prompts)?;
    let mut rows = vec![];
    for ((row, prompt), answer) in asked.conversations.iter().zip(&prompts).zip(answers) {
        let ids = model.tokenizer.encode_chat(&row.messages, false)?;
        let loss = loss(&model, &ids)?;
        let messages = row.prompt();
        rows.push(
            json!({"messages": messages, "prompt": prompt, "answer": answer, "ids": ids, "loss": loss}),
        );
    }
    questions::write(&options.out.join("ours.json"), &json!({"rows": rows}))?;
    if options.logits > 0 {
        write_logits(&options.out.join("ours.safetensors"), &model, options.logits)?;
    }
    Ok(())
}

/// The mean loss of each token after the first, in nats.
fn loss(model: &Model, ids: &[u32]) -> Result<f64> {
    let next = ids.iter().skip(1).map(|id| i64::from(*id)).chain([IGNORE_INDEX]);
    let sum = model.gemma.loss(&PackedTokens::new(&[ids]), &next.collect::<Vec<_>>())?;
    Ok(sum.sum / sum.rows as f64)
}

/// Tokens at random, and the logits after each.
fn write_logits(path: &Path, model: &Model, count: usize) -> Result<()> {
    let vocab = model.gemma.config().vocab_size;
    let mut rng = Philox::new(1, 0);
    let ids: Vec<u32> = (0..count).map(|_| rng.below(vocab as u64) as u32).collect();
    let logits = model.gemma.logits(&model.gemma.hidden_states(&PackedTokens::new(&[&ids]))?)?;
    let whole = ids.iter().map(|id| i64::from(*id)).collect();
    let tensors = BTreeMap::from([
        ("ids".to_string(), Tensor::from_vec(whole, count, &candle_core::Device::Cpu)?),
        ("logits".to_string(), logits),
    ]);
    write_safetensors(path, &tensors, None)
}
