//! The trainer as a whole, on the embedded model: resuming, accumulation, checkpoints, merging.

mod checkpoints;
mod resuming;
mod trained_model;
mod training;

use std::path::Path;

use emoji_lab::prelude::*;

fn rows(count: usize) -> ChatDataset {
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
    format_chat(&dataset).take(count)
}

fn settings(output_dir: &Path) -> SftConfig {
    SftConfig {
        output_dir: output_dir.to_path_buf(),
        num_train_epochs: 2.0,
        learning_rate: 2e-3,
        logging_strategy: Strategy::Steps(1),
        eval_strategy: Strategy::Epoch,
        save_strategy: Strategy::Steps(1),
        report_to_tensorboard: false,
        progress_lines: 0,
        ..SftConfig::default()
    }
}

fn trainer(args: &SftConfig, rows: &ChatDataset) -> SftTrainer {
    let model = load_model("embedded", &Device::Cpu).unwrap();
    let lora = LoraConfig { r: 4, lora_alpha: 8.0, ..LoraConfig::default() };
    SftTrainer::new(&model, rows, Some(rows), &QuantConfig::default(), Some(&lora), args).unwrap()
}

fn losses(log: &[LogEntry]) -> Vec<(usize, Option<u64>, Option<u64>)> {
    let bits = |value: Option<f64>| value.map(f64::to_bits);
    log.iter().filter(|e| e.train_loss.is_none()).map(|e| (e.step, bits(e.loss), bits(e.eval_loss))).collect()
}

fn bytes(dir: &Path, checkpoint: &str) -> Vec<u8> {
    std::fs::read(dir.join(checkpoint).join("adapter_model.safetensors")).unwrap()
}
