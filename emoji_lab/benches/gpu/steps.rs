//! Optimizer steps and evaluation, timed.

use std::time::Instant;

use emoji_lab::Result;
use emoji_lab::lora::LoraConfig;
use emoji_lab::model::Gemma3;
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune, StepResult};

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a device copy reaches on an H100 (`docs/gpu-log.md`), TB/s.
const BANDWIDTH: f64 = 3.0;

/// The bytes that a step has to move: the head read for logits and for their gradient, its gradient
/// written and read twice (norm, AdamW), values and moments read and written. The layers' own
/// weights and activations are small beside these.
fn floor_bytes(model: &Gemma3, finetune: &Finetune) -> usize {
    let config = model.config();
    let head = config.vocab_size * config.hidden_size;
    let size = model.device().dtype().size_in_bytes();
    let trained = finetune.trainable();
    let moments = 2 * finetune.optimizer().state_dtype.size_in_bytes();
    2 * head * size + 3 * head * size + 3 * (trained - head) * 4 + 2 * trained * (4 + moments)
}

/// Runs all `batches` as steps, a few ahead.
pub fn run(finetune: &mut Finetune, batches: &[Batch]) -> Result<Vec<StepResult>> {
    let mut pending = std::collections::VecDeque::new();
    let mut results = vec![];
    for batch in batches {
        while !finetune.has_room()
            && let Some(step) = pending.pop_front()
        {
            results.push(finetune.wait(step)?);
        }
        pending.push_back(finetune.submit(std::slice::from_ref(batch), 5e-5)?);
    }
    for step in pending {
        results.push(finetune.wait(step)?);
    }
    Ok(results)
}

/// What [`bench`] found.
pub struct Found {
    pub median_ms: f64,
    pub floor_ms: f64,
    pub bytes: usize,
}

/// Trains a copy of `model` on `batches`, `rounds` times over.
pub fn bench(model: &Gemma3, batches: &[Batch], rounds: usize, optimizer: AdamW) -> Result<Found> {
    let started = Instant::now();
    let lora = LoraConfig::default();
    let mut finetune = Finetune::new(model, &QuantConfig::default(), Some(&lora), optimizer, 1.0, 42)?;
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
    let mut times = vec![];
    for round in 1..=rounds {
        let started = Instant::now();
        let results = run(&mut finetune, batches)?;
        let wall = started.elapsed().as_secs_f64();
        let device: Vec<f64> = results.iter().filter_map(|r| r.device_ms).collect();
        let last = results.last().map_or(f64::NAN, |r| r.loss);
        println!(
            "round {round}: step median {:.3} ms (host and all {:.3} ms), {:.0} tokens/s, last loss {last:.4}",
            median(device.clone()),
            wall * 1e3 / batches.len() as f64,
            tokens as f64 / wall
        );
        // The first round has the making of graphs in it.
        if round > 1 || rounds == 1 {
            times.extend(device);
        }
    }
    let floor = floor_bytes(model, &finetune) as f64;
    let floor_ms = floor / (BANDWIDTH * 1e9);
    println!("floor of a step: {:.2} GB read and written, {floor_ms:.2} ms at {BANDWIDTH} TB/s", floor / 1e9);
    let mut bytes = 0;
    for (what, part) in finetune.device_memory().into_iter().flat_map(|memory| memory.parts) {
        println!("{what:<30} {:>8.1} MB", part as f64 / 1e6);
        bytes += part;
    }
    println!("{:<30} {:>8.1} MB", "together", bytes as f64 / 1e6);
    Ok(Found { median_ms: median(times), floor_ms, bytes })
}
