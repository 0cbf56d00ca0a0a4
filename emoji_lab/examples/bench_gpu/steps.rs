//! Optimizer steps and evaluation, timed.

use std::time::Instant;

use emoji_lab::Result;
use emoji_lab::lora::LoraConfig;
use emoji_lab::model::Gemma3;
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune, StepResult};

pub const OPTIMIZER: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a device copy reaches on an H100 (`docs/gpu-log.md`), TB/s.
const BANDWIDTH: f64 = 3.0;

/// The bytes that a step has to move: the head's copy read for logits and for their gradient, its
/// gradient written and read twice (norm, AdamW), values and moments read and written, the copy
/// written. The layers' own weights and activations are small beside these.
fn floor_bytes(model: &Gemma3, finetune: &Finetune) -> usize {
    let config = model.config();
    let head = config.vocab_size * config.hidden_size;
    let size = model.device().dtype().size_in_bytes();
    let copy = if size == 2 { head * 2 } else { 0 };
    let trained = finetune.arena().len();
    2 * head * size + 3 * head * size + 3 * (trained - head) * 4 + 6 * trained * 4 + copy
}

/// Runs all `batches` as steps, a few ahead.
pub fn run(finetune: &mut Finetune, batches: &[Batch]) -> Result<Vec<StepResult>> {
    let mut pending = std::collections::VecDeque::new();
    let mut results = vec![];
    for batch in batches {
        while !finetune.has_room() {
            if let Some(step) = pending.pop_front() {
                results.push(finetune.wait(step)?);
            }
        }
        pending.push_back(finetune.submit(std::slice::from_ref(batch), 5e-5)?);
    }
    for step in pending {
        results.push(finetune.wait(step)?);
    }
    Ok(results)
}

pub fn bench(model: &Gemma3, batches: &[Batch], rounds: usize) -> Result<()> {
    let started = Instant::now();
    let lora = LoraConfig::default();
    let mut finetune = Finetune::new(model, &QuantConfig::default(), Some(&lora), OPTIMIZER, 1.0, 42)?;
    let longest = batches.iter().map(|b| b.tokens.len()).max().unwrap_or(0);
    finetune.reserve(longest)?;
    println!("trainer made in {:.2} s", started.elapsed().as_secs_f64());
    let tokens: usize = batches.iter().map(|b| b.tokens.len()).sum();
    println!("{} batches, {tokens} tokens, longest batch {longest}", batches.len());
    let first = Instant::now();
    for result in run(&mut finetune, &batches[..2])? {
        println!("loss {:.4}, grad_norm {:.4}", result.loss, result.grad_norm);
    }
    println!("first two steps {:.3} s", first.elapsed().as_secs_f64());
    for round in 1..=rounds {
        let started = Instant::now();
        let results = run(&mut finetune, batches)?;
        let wall = started.elapsed().as_secs_f64();
        let device: Vec<f64> = results.iter().filter_map(|r| r.device_ms).collect();
        let last = results.last().map_or(f64::NAN, |r| r.loss);
        println!(
            "round {round}: step median {:.3} ms (host and all {:.3} ms), {:.0} tokens/s, last loss {last:.4}",
            median(device),
            wall * 1e3 / batches.len() as f64,
            tokens as f64 / wall
        );
    }
    let floor = floor_bytes(model, &finetune) as f64;
    println!(
        "floor of a step: {:.2} GB read and written, {:.2} ms at {BANDWIDTH} TB/s",
        floor / 1e9,
        floor / (BANDWIDTH * 1e9)
    );
    let held_out = &batches[..64.min(batches.len())];
    for round in 1..=2 {
        let started = Instant::now();
        let loss = finetune.evaluate(held_out)?;
        println!(
            "evaluation of {} batches, round {round}: {:.3} s, loss {loss:.4}",
            held_out.len(),
            started.elapsed().as_secs_f64()
        );
    }
    let mut total = 0;
    for (what, bytes) in finetune.device_memory() {
        println!("{what:<30} {:>8.1} MB", bytes as f64 / 1e6);
        total += bytes;
    }
    println!("{:<30} {:>8.1} MB", "together", total as f64 / 1e6);
    Ok(())
}
