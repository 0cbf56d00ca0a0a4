//! Greedy generation, one stream, timed.

use std::time::Instant;

use emoji_lab::Result;
use emoji_lab::model::Gemma3;

/// Tokens a run generates.
const NEW: usize = 256;

pub fn bench(model: &Gemma3) -> Result<()> {
    let prompt: Vec<u32> = (0..24).map(|i| 2 + i * 977).collect();
    for round in 1..=3 {
        let started = Instant::now();
        let tokens = model.greedy(&prompt, NEW)?;
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "generation {round}: {} tokens after a prompt of {} in {:.4} s, {:.0} tokens/s",
            tokens.len(),
            prompt.len(),
            seconds,
            tokens.len() as f64 / seconds
        );
    }
    Ok(())
}
