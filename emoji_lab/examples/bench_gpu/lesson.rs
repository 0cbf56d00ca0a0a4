//! The whole lesson on the real model.

use std::time::Instant;

use emoji_lab::data::{
    EmojiFilter, SYSTEM_PROMPT, format_chat, load_dataset, split_at_rows, train_test_split,
};
use emoji_lab::lora::LoraConfig;
use emoji_lab::model::load_model;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{SftConfig, SftTrainer};
use emoji_lab::{Error, Result};

use crate::{Options, generation, random, steps};

pub fn bench(gguf: &str, options: &Options) -> Result<()> {
    let started = Instant::now();
    let model = load_model(gguf, &options.device)?;
    println!("model loaded in {:.2} s", started.elapsed().as_secs_f64());
    generation::bench(&model.gemma)?;
    let Some(data) = &options.data else {
        let batches = random::batches(4, model.gemma.config().vocab_size as u64);
        return steps::bench(&model.gemma, &batches, options.rounds);
    };
    let chat = format_chat(&load_dataset(data, EmojiFilter::default())?, SYSTEM_PROMPT);
    let splits = match &options.split {
        Some(path) => split_at_rows(&chat, &held_out(path)?)?,
        None => train_test_split(&chat, 0.1, 42)?,
    };
    let args = SftConfig { output_dir: options.out.clone().into(), ..SftConfig::default() };
    let started = Instant::now();
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    let mut trainer = SftTrainer::new(&model, &splits.train, Some(&splits.test), &quant, Some(&lora), &args)?;
    println!("trainer made in {:.2} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    trainer.train()?;
    println!("train(): {:.2} s", started.elapsed().as_secs_f64());
    for entry in trainer.log_history() {
        println!("{}", serde_json::to_string(entry).unwrap_or_default());
    }
    for (what, bytes) in trainer.finetune().device_memory() {
        println!("{what:<30} {:>8.1} MB", bytes as f64 / 1e6);
    }
    let started = Instant::now();
    let loss = trainer.evaluate()?;
    println!(
        "evaluation of {} rows: {:.3} s, loss {loss:.4}",
        splits.test.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The `test` rows of a split file.
fn held_out(path: &str) -> Result<Vec<usize>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading the split", e))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| Error::dataset(path, e, "Give a JSON object with `test`"))?;
    let rows = json["test"].as_array().into_iter().flatten();
    Ok(rows.filter_map(|row| row.as_u64()).map(|row| row as usize).collect())
}
