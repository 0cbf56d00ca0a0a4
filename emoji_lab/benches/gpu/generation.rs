//! Greedy generation, one stream, timed.

use std::time::Instant;

use emoji_lab::Result;
use emoji_lab::model::Gemma3;

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
