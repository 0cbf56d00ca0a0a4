//! Optimizer steps and evaluation, timed.

use std::time::Instant;

use emoji_lab::model::{Gemma3, tensor_shapes};
use emoji_lab::train::{Batch, Finetune, StepResult};
use emoji_lab::{Device, Result};

use crate::recipe::Recipe;

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What a device copy reaches on an H100 (`docs/gpu-log.md`), TB/s.
const BANDWIDTH: f64 = 3.0;

/// The bytes that a step has to move: what products read and is trained read for a product and for its
/// gradient, that gradient written and read twice (norm, AdamW), values and moments read and written; what is
/// frozen read twice as it is stored. Activations are small beside these.
fn floor_bytes(model: &Gemma3, finetune: &Finetune, recipe: &Recipe) -> usize {
    let config = model.config();
    let size = model.device().dtype().size_in_bytes();
    let head = config.vocab_size * config.hidden_size;
    let matrices: usize = tensor_shapes(config)
        .iter()
        .filter(|(name, dims)| dims.len() == 2 && name.contains("layers"))
        .map(|(_, dims)| dims.iter().product::<usize>())
        .sum();
    let (whole, trained) = (recipe.trains == "whole", finetune.trainable());
    let head_is_trained = whole || recipe.trains == "google";
    let of_products = if head_is_trained { head } else { 0 } + if whole { matrices } else { 0 };
    let moments = 2 * finetune.optimizer().state_dtype.size_in_bytes();
    // NF4 with f32 for every 64 values.
    let stored = if recipe.quant().load_in_4bit { matrices * 9 / 16 } else { matrices * size };
    let frozen = if whole { 0 } else { stored } + if head_is_trained { 0 } else { head * size };
    2 * frozen + 5 * of_products * size + 3 * (trained - of_products) * 4 + 2 * trained * (4 + moments)
}

/// Runs all `batches` as steps, a few ahead.
pub fn run(finetune: &mut Finetune, batches: &[Batch], accumulated: usize) -> Result<Vec<StepResult>> {
    let mut pending = std::collections::VecDeque::new();
    let mut results = vec![];
    for step in batches.chunks(accumulated) {
        while !finetune.has_room()
            && let Some(step) = pending.pop_front()
        {
            results.push(finetune.wait(step)?);
        }
        pending.push_back(finetune.submit(step, 5e-5)?);
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
pub fn bench(model: &Gemma3, batches: &[Batch], rounds: usize, recipe: &Recipe) -> Result<Found> {
    let free = |device: &Device| match device {
        Device::Cuda(gpu) => gpu.memory().map_or(0, |(free, _)| free),
        _ => 0,
    };
    // What the context takes is not the trainer's.
    let before = free(model.device());
    let started = Instant::now();
    let mut finetune = recipe.start(model, batches)?;
    let longest = batches.iter().map(|b| b.tokens.len()).max().unwrap_or(0);
    finetune.reserve(longest)?;
    println!("trainer made in {:.2} s", started.elapsed().as_secs_f64());
    let tokens: usize = batches.iter().map(|b| b.tokens.len()).sum();
    println!("{} batches, {tokens} tokens, longest batch {longest}", batches.len());
    let first = Instant::now();
    for result in run(&mut finetune, &batches[..2 * recipe.accumulated], recipe.accumulated)? {
        println!("loss {:.4}, grad_norm {:.4}", result.loss, result.grad_norm);
    }
    println!("first two steps {:.3} s", first.elapsed().as_secs_f64());
    let mut times = vec![];
    for round in 1..=rounds {
        let started = Instant::now();
        let results = run(&mut finetune, batches, recipe.accumulated)?;
        let wall = started.elapsed().as_secs_f64();
        let device: Vec<f64> = results.iter().filter_map(|r| r.device_ms).collect();
        let last = results.last().map_or(f64::NAN, |r| r.loss);
        println!(
            "round {round}: step median {:.3} ms (host and all {:.3} ms), {:.0} tokens/s, last loss {last:.4}",
            median(device.clone()),
            wall * 1e3 / results.len() as f64,
            tokens as f64 / wall
        );
        // The first round has the making of graphs in it.
        if round > 1 || rounds == 1 {
            times.extend(device);
        }
    }
    let floor = floor_bytes(model, &finetune, recipe) as f64;
    let floor_ms = floor / (BANDWIDTH * 1e9);
    println!("floor of a step: {:.2} GB read and written, {floor_ms:.2} ms at {BANDWIDTH} TB/s", floor / 1e9);
    let mut bytes = 0;
    for (what, part) in finetune.device_memory().into_iter().flat_map(|memory| memory.parts) {
        println!("{what:<30} {:>8.1} MB", part as f64 / 1e6);
        bytes += part;
    }
    println!("{:<30} {:>8.1} MB", "together", bytes as f64 / 1e6);
    let taken = before.saturating_sub(free(model.device()));
    println!(
        "{:<30} {:>8.1} MB, {:+.1} %",
        "as the driver counts",
        taken as f64 / 1e6,
        (bytes as f64 / taken.max(1) as f64 - 1.0) * 100.0
    );
    Ok(Found { median_ms: median(times), floor_ms, bytes })
}
