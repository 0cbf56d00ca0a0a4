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
use std::path::Path;
use std::time::Instant;

use emoji_lab::export::{OnnxVariant, export_onnx};
use emoji_lab::model::{Model, PackedTokens, load_model, write_safetensors};
use emoji_lab::ops::IGNORE_INDEX;
use emoji_lab::rng::Philox;
use emoji_lab::{Device, Result, Tensor, say};
use questions::Options;
use serde_json::json;

/// Which variants are written, and after how many tokens logits are.
fn options() -> Result<(Options, Vec<OnnxVariant>, usize)> {
    let (mut variants, mut logits) = (OnnxVariant::ALL.to_vec(), 0);
    let all = "there are --variants, --data, --split, --rows and --logits";
    let options = Options::read(all, |option, value| {
        match option {
            "--variants" => variants = value.split(',').map(str::parse).collect::<Result<_>>()?,
            "--logits" => logits = questions::number(option, value)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok((options, variants, logits))
}

fn main() -> Result<()> {
    let (options, variants, logits) = options()?;
    let started = Instant::now();
    let model = load_model(&options.model, &Device::Cpu)?;
    say!("{} loaded in {:.1} s", options.model, started.elapsed().as_secs_f64());
    say!("{}", export_onnx(&model, &options.out, &variants)?);

    let asked = options.questions()?;
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
    if logits > 0 {
        write_logits(&options.out.join("ours.safetensors"), &model, logits)?;
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
