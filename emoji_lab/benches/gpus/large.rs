//! A large dataset on all GPUs.

use std::time::Instant;

use emoji_lab::Device;
use emoji_lab::Result;
use emoji_lab::data::{Dataset, Example, format_chat};
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{SftConfig, SftTrainer, Strategy};

use crate::{Options, recipes};

/// `rows` rows of those that there are, the number of the copy behind each text.
fn numbered(mut dataset: Dataset, rows: usize) -> Dataset {
    let there = dataset.examples.clone();
    let copy = |i: usize| {
        let Example { text, answer } = &there[i % there.len()];
        Example { text: format!("{text} {}", 1 + i / there.len()), answer: answer.clone() }
    };
    dataset.examples = (0..rows).map(copy).collect();
    dataset
}

/// Tokenises them, tells the memory, and trains.
pub fn bench(options: &Options, all: &Device) -> Result<()> {
    let dataset = numbered(options.dataset()?, options.rows);
    let model = options.model(all)?;
    for (name, lora) in recipes() {
        let started = Instant::now();
        let chat = format_chat(&dataset);
        let args = SftConfig {
            per_device_train_batch_size: 16,
            max_steps: Some(options.steps),
            logging_strategy: Strategy::Steps(options.steps.div_ceil(4)),
            save_strategy: Strategy::No,
            eval_strategy: Strategy::No,
            report_to_tensorboard: false,
            output_dir: std::env::temp_dir().join("emoji_lab-bench-gpus"),
            ..SftConfig::default()
        };
        let mut trainer = SftTrainer::new(&model, &chat, None, &QuantConfig::default(), Some(&lora), &args)?;
        println!(
            "{name}: {} rows tokenised, trainer made in {:.1} s",
            chat.len(),
            started.elapsed().as_secs_f64()
        );
        println!("{}", trainer.parameter_report());
        let done = trainer.train()?;
        let rows = options.steps * 16 * all.count();
        println!(
            "{name}: {} steps, {rows} rows in {:.2} s with the making of graphs: {:.0} rows/s, mean loss {:.4}",
            done.global_step,
            done.seconds,
            rows as f64 / done.seconds,
            done.train_loss
        );
    }
    Ok(())
}
