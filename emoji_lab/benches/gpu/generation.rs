//! Greedy generation, one stream and many side by side, timed.

use std::time::Instant;

use emoji_lab::Result;
use emoji_lab::model::{Gemma3, GenerationConfig};

use crate::steps::median;

/// Tokens a run generates.
const NEW: usize = 256;

/// Tokens a second, the median of five runs; the first, which captures the graph, not counted.
pub fn bench(model: &Gemma3) -> Result<f64> {
    let prompt: Vec<u32> = (0..24).map(|i| 2 + i * 977).collect();
    model.greedy(&prompt, NEW)?;
    let mut speeds = vec![];
    for _ in 0..5 {
        let started = Instant::now();
        let tokens = model.greedy(&prompt, NEW)?;
        speeds.push(tokens.len() as f64 / started.elapsed().as_secs_f64());
    }
    println!(
        "generation: {NEW} tokens after a prompt of {}: {:.0} tokens/s",
        prompt.len(),
        median(speeds.clone())
    );
    Ok(median(speeds))
}

/// Streams that go side by side.
const STREAMS: usize = 64;

/// Tokens a second of [`STREAMS`] streams together, the median of three runs; the first, which captures the
/// graph, not counted.
pub fn side_by_side(model: &Gemma3) -> Result<f64> {
    let prompts: Vec<Vec<u32>> =
        (0..STREAMS as u32).map(|p| (0..24).map(|i| 2 + p * 31 + i * 977).collect()).collect();
    let config = GenerationConfig { max_new_tokens: NEW, do_sample: false, ..GenerationConfig::default() };
    model.generate_batch(&prompts, &config, &[])?;
    let mut speeds = vec![];
    for _ in 0..3 {
        let started = Instant::now();
        let tokens: usize = model.generate_batch(&prompts, &config, &[])?.iter().map(Vec::len).sum();
        speeds.push(tokens as f64 / started.elapsed().as_secs_f64());
    }
    println!("generation: {STREAMS} streams together: {:.0} tokens/s", median(speeds.clone()));
    Ok(median(speeds))
}
