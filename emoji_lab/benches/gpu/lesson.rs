//! The whole lesson on the real model.

use std::time::Instant;

use emoji_lab::data::{format_chat, held_out_rows, load_dataset, split_at_rows, train_test_split};
use emoji_lab::lora::LoraConfig;
use emoji_lab::model::load_model;
use emoji_lab::quant::QuantConfig;
use emoji_lab::task::Task;
use emoji_lab::train::{DeviceMemory, SftConfig, SftTrainer};
use emoji_lab::{DType, Result};

use crate::table::Table;
use crate::{Options, generation, random, steps};

pub fn bench(gguf: &str, options: &Options) -> Result<()> {
    let mut table = Table::new(options.optimizer().state_dtype == DType::BF16);
    for round in 1..=2 {
        println!("\nround {round}");
        once(gguf, options, &mut table)?;
    }
    table.print();
    Ok(())
}

fn once(gguf: &str, options: &Options, table: &mut Table) -> Result<()> {
    let started = Instant::now();
    let model = load_model(gguf, &options.device)?;
    model.gemma.prepare_device()?;
    table.load.add(started.elapsed().as_secs_f64());
    println!("model ready in {:.2} s", started.elapsed().as_secs_f64());
    table.generation.add(generation::bench(&model.gemma)?);
    model.gemma.release_device();
    let Some(data) = &options.data else {
        let batches = random::batches(4, model.gemma.config().vocab_size as u64);
        let found = steps::bench(&model.gemma, &batches, options.rounds, options.optimizer())?;
        table.step.add(found.median_ms);
        table.step.floor(found.floor_ms);
        table.memory.add(found.bytes as f64 / 1e9);
        return Ok(());
    };
    let chat = format_chat(&load_dataset(data, Task::emoji())?);
    let splits = match &options.split {
        Some(path) => split_at_rows(&chat, &held_out_rows(path)?)?,
        None => train_test_split(&chat, 0.1, 42)?,
    };
    let args = SftConfig {
        output_dir: options.out.clone().into(),
        optim_state_dtype: options.optimizer().state_dtype,
        ..SftConfig::default()
    };
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    let new = || SftTrainer::new(&model, &splits.train, Some(&splits.test), &quant, Some(&lora), &args);
    // The steps alone, on a trainer's own that is gone before the lesson's is made.
    let batches = new()?.epoch_batches(0);
    let found = steps::bench(&model.gemma, &batches, options.rounds, options.optimizer())?;
    table.step.add(found.median_ms);
    table.step.floor(found.floor_ms);
    let mut trainer = new()?;
    let started = Instant::now();
    trainer.train()?;
    table.train.add(started.elapsed().as_secs_f64());
    println!("train(): {:.2} s", started.elapsed().as_secs_f64());
    for entry in trainer.log_history() {
        println!("{}", serde_json::to_string(entry).unwrap_or_default());
    }
    let bytes: usize = trainer.finetune().device_memory().iter().map(DeviceMemory::bytes).sum();
    table.memory.add(bytes as f64 / 1e9);
    let started = Instant::now();
    let loss = trainer.evaluate()?;
    table.evaluation.add(started.elapsed().as_secs_f64());
    println!("evaluation of {} rows: loss {loss:.4}", splits.test.len());
    // Checkpoints of the next round would be made beside these.
    let _ = std::fs::remove_dir_all(&options.out);
    Ok(())
}
