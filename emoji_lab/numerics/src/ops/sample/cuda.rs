//! The launches of a choice.

use super::Rule;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::DevicePtr;
use crate::ops::decode::cuda::DecodeState;

/// [`Rule`], as the kernels read it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SampleRule {
    seed: u64,
    top_p: f64,
    temperature: f32,
    penalty: f32,
    top_k: i32,
    draw: i32,
}

mirrored_in_memory! {
    SampleRule: 32 { seed: 0, top_p: 8, temperature: 16, penalty: 20, top_k: 24, draw: 28 }
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

/// What is known of a filter's threshold.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Threshold {
    rest: u64,
    prefix: u32,
    unused: u32,
}

mirrored_in_memory! {
    Threshold: 16 { rest: 0, prefix: 8, unused: 12 }
}

/// What choosing a token reads and writes, beside the logits. Of several rows (sequences) the fields of
/// each lie behind those of the one before, without gaps.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct SampleBuffers {
    pub rule: DevicePtr<SampleRule>,
    /// `[vocab / 32]`, a bit per token.
    pub seen: DevicePtr<u32>,
    /// `[vocab]`.
    pub x: DevicePtr<f32>,
    /// `[blocks]`.
    pub tops: DevicePtr<f32>,
    /// One.
    pub top: DevicePtr<f32>,
    /// `[HISTOGRAMS, BINS]`, zeros between tokens.
    pub histograms: DevicePtr<u64>,
    /// `[HISTOGRAMS]`.
    pub thresholds: DevicePtr<Threshold>,
    /// `[blocks]`.
    pub best: DevicePtr<f32>,
    /// `[blocks]`.
    pub best_row: DevicePtr<i32>,
    pub vocab: i32,
    /// One for every [`TOKENS`] tokens.
    pub blocks: i32,
}

mirrored! {
    SampleBuffers: 80 {
        rule: 0, seen: 8, x: 16, tops: 24, top: 32, histograms: 40, thresholds: 48, best: 56, best_row: 64, vocab: 72,
        blocks: 76,
    }
}

/// Tokens of a block.
pub const TOKENS: usize = 2048;
/// One for each of both filters' three digits.
pub const HISTOGRAMS: usize = 6;
/// Values of a digit.
pub const BINS: usize = 2048;
/// Every kernel's.
const THREADS: usize = 1024;

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SampleScale {
    logits: DevicePtr<f32>,
    buffers: SampleBuffers,
}

mirrored! {
    SampleScale: 88 { logits: 0, buffers: 8 }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SampleDigit {
    buffers: SampleBuffers,
    level: i32,
}

mirrored! {
    SampleDigit: 88 { buffers: 0, level: 80 }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SampleDraw {
    buffers: SampleBuffers,
    state: DevicePtr<DecodeState>,
}

mirrored! {
    SampleDraw: 88 { buffers: 0, state: 80 }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct SamplePick {
    buffers: SampleBuffers,
    written: DevicePtr<i32>,
    state: DevicePtr<DecodeState>,
    room: i32,
}

mirrored! {
    SamplePick: 104 { buffers: 0, written: 80, state: 88, room: 96 }
}

const SCALE: Kernel<SampleScale> = Kernel::plain("sample_scale");
const TOP_K: Kernel<SampleDigit> = Kernel::plain("sample_top_k");
const TOP_P: Kernel<SampleDigit> = Kernel::plain("sample_top_p");
const DRAW: Kernel<SampleDraw> = Kernel::plain("sample_draw");
const PICK: Kernel<SamplePick> = Kernel::plain("sample_pick");

/// Where what is chosen goes, of `rows` rows.
#[derive(Debug, Clone, Copy)]
pub struct Chosen {
    /// `[rows, room]`.
    pub written: DevicePtr<i32>,
    /// `[rows]`.
    pub state: DevicePtr<DecodeState>,
    pub rows: usize,
    /// Tokens of a row, as many as its state's limit or more.
    pub room: usize,
}

impl SampleBuffers {
    /// Chooses in each row the token after its state's position, from `logits` `[rows, vocab]`: it is
    /// written and is the next to be read, unless the state's limit has been reached.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn choose(self, gpu: &Gpu, logits: DevicePtr<f32>, to: Chosen) -> Result<()> {
        let Chosen { written, state, rows, room } = to;
        let (buffers, room) = (self, room as i32);
        let grid = Grid::new(self.blocks as usize, THREADS).rows(rows);
        // SAFETY: the caller's.
        unsafe {
            SCALE.launch(gpu, grid, SampleScale { logits, buffers })?;
            for level in 1..3 {
                TOP_K.launch(gpu, grid, SampleDigit { buffers, level })?;
            }
            for level in 0..3 {
                TOP_P.launch(gpu, grid, SampleDigit { buffers, level })?;
            }
            DRAW.launch(gpu, grid, SampleDraw { buffers, state })?;
            PICK.launch(gpu, Grid::new(1, THREADS).rows(rows), SamplePick { buffers, written, state, room })
        }
    }
}
