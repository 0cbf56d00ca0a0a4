//! The whole lesson on a model.

use std::time::Instant;

use emoji_lab::data::{format_chat, held_out_rows, load_dataset, split_at_rows, train_test_split};
use emoji_lab::lora::TokenIndices;
use emoji_lab::task::Task;
use emoji_lab::train::{DeviceMemory, SftConfig, SftTrainer, Strategy};
use emoji_lab::{DType, Result};

use crate::table::Table;
use crate::{Options, generation, random, steps};

pub fn bench(options: &Options) -> Result<()> {
    let mut table = Table::new(options.recipe.moments == DType::BF16);
    for round in 1..=2 {
        println!("\nround {round}");
        once(options, &mut table)?;
    }
    table.print();
    Ok(())
}

fn once(options: &Options, table: &mut Table) -> Result<()> {
    let started = Instant::now();
    let model = options.load()?;
    model.gemma.prepare_device()?;
    table.load.add(started.elapsed().as_secs_f64());
    println!("model ready in {:.2} s", started.elapsed().as_secs_f64());
    if options.only.as_deref() != Some("steps") {
        table.generation.add(generation::bench(&model.gemma)?);
        generation::side_by_side(&model.gemma)?;
    }
    model.gemma.release_device();
    if options.only.as_deref() == Some("generation") {
        return Ok(());
    }
    let recipe = &options.recipe;
    let Some(data) = &options.data else {
        let vocab = model.gemma.config().vocab_size as u64;
        let batches = random::batches(options.batches, recipe.rows, vocab);
        let found = steps::bench(&model.gemma, &batches, options.rounds, recipe)?;
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
        optim_state_dtype: recipe.moments,
        per_device_train_batch_size: recipe.rows,
        gradient_accumulation_steps: recipe.accumulated,
        save_strategy: if options.checkpoints { Strategy::Epoch } else { Strategy::No },
        ..SftConfig::default()
    };
    let (quant, lora) = (recipe.quant(), recipe.lora(TokenIndices::Occurring));
    let new = || SftTrainer::new(&model, &splits.train, Some(&splits.test), &quant, lora.as_ref(), &args);
    // The steps alone, on a trainer's own that is gone before the lesson's is made.
    let batches = new()?.epoch_batches(0);
    let found = steps::bench(&model.gemma, &batches, options.rounds, recipe)?;
    table.step.add(found.median_ms);
    table.step.floor(found.floor_ms);
    let mut trainer = new()?;
    let started = Instant::now();
    trainer.train()?;
    table.train.add(started.elapsed().as_secs_f64());
    let seconds = started.elapsed().as_secs_f64();
    let tokens: usize = batches.iter().map(|batch| batch.tokens.len()).sum();
    println!("train(): {seconds:.2} s, {:.0} tokens/s", 3.0 * tokens as f64 / seconds);
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
