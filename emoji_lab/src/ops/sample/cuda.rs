//! The launches of a choice.

use super::Rule;
use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// `SampleRule` of `kernel.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct SampleRule {
    seed: u64,
    top_p: f64,
    temperature: f32,
    penalty: f32,
    top_k: i32,
    draw: i32,
}

impl From<&Rule> for SampleRule {
    fn from(rule: &Rule) -> Self {
        Self {
            seed: rule.seed,
            top_p: rule.top_p,
            temperature: rule.temperature,
            penalty: rule.penalty,
            top_k: i32::try_from(rule.top_k).unwrap_or(i32::MAX),
            draw: i32::from(rule.draw),
        }
    }
}

/// `SampleBuffers` of `kernel.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Buffers {
    pub(crate) rule: u64,
    pub(crate) seen: u64,
    pub(crate) x: u64,
    pub(crate) tops: u64,
    pub(crate) top: u64,
    pub(crate) histograms: u64,
    pub(crate) thresholds: u64,
    pub(crate) best: u64,
    pub(crate) best_row: u64,
    pub(crate) vocab: i32,
    pub(crate) blocks: i32,
}

/// Tokens of a block.
pub(crate) const TOKENS: usize = 2048;
/// Of both filters' three digits.
pub(crate) const HISTOGRAM_BYTES: usize = 6 * 2048 * 8;
pub(crate) const THRESHOLD_BYTES: usize = 6 * 16;
/// Every kernel's.
const THREADS: usize = 1024;

/// Chooses the token after the state's position: written, and next to be read.
///
/// # Safety
/// `logits` must be f32 `[vocab]`; `s` laid out as `kernel.cu` says, its histograms zero;
/// `written` must have the state's room.
pub(crate) unsafe fn choose(gpu: &Gpu, logits: u64, s: Buffers, written: u64, state: u64) -> Result<()> {
    let grid = Grid::new(s.blocks as usize, THREADS);
    // SAFETY: the caller's.
    unsafe {
        launch!(gpu, plain "sample_scale", grid, logits, s)?;
        for level in 1..3i32 {
            launch!(gpu, plain "sample_top_k", grid, s, level)?;
        }
        for level in 0..3i32 {
            launch!(gpu, plain "sample_top_p", grid, s, level)?;
        }
        launch!(gpu, plain "sample_draw", grid, s, state)?;
        launch!(gpu, plain "sample_pick", Grid::new(1, THREADS), s, written, state)
    }
}
