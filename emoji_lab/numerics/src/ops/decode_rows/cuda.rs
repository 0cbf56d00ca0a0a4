//! The launches of decoding in rows.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::{mirrored, mirrored_in_memory};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::decode::cuda::{DecodeHeads, DecodeState};

/// A row that begins with a prompt of a packed pass.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct RowFill {
    pub row: i32,
    /// Where the prompt begins among the pass' tokens.
    pub first: i32,
    /// Its tokens.
    pub len: i32,
}

mirrored_in_memory! {
    RowFill: 12 { row: 0, first: 4, len: 8 }
}

/// Prompts' keys and values into the rows' caches.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct FillRows {
    /// `[tokens, kv_heads · dim]`.
    pub k: DevicePtr<Compute>,
    /// `[tokens, (heads + 2 · kv_heads) · dim]`.
    pub qkv: DevicePtr<Compute>,
    /// `[rows, capacity, kv_heads, dim]`.
    pub keys: DevicePtr<Compute>,
    /// As `keys`.
    pub values: DevicePtr<Compute>,
    /// As many as are filled.
    pub fills: DevicePtr<RowFill>,
    pub heads: DecodeHeads,
}

mirrored! {
    FillRows: 64 { k: 0, qkv: 8, keys: 16, values: 24, fills: 32, heads: 40 }
}

const FILL: Kernel<FillRows> = Kernel::typed("fill_rows");

impl FillRows {
    /// For `fills` rows, of whose prompts the longest has `longest` tokens.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name, and the fills be within them.
    pub unsafe fn launch(self, gpu: &Gpu, fills: usize, longest: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { FILL.launch(gpu, Grid::new(longest, 128).rows(fills), self) }
    }
}

/// From which row, and to which.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct RowCopy {
    pub from: i32,
    pub to: i32,
}

mirrored_in_memory! {
    RowCopy: 8 { from: 0, to: 4 }
}

/// Rows of one matrix to rows of another.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct CopyRows {
    /// `[any number, width]`.
    pub from: DevicePtr<Compute>,
    /// `[any number, width]`.
    pub to: DevicePtr<Compute>,
    /// As many as are copied.
    pub copies: DevicePtr<RowCopy>,
    pub width: i32,
}

mirrored! {
    CopyRows: 32 { from: 0, to: 8, copies: 16, width: 24 }
}

const COPY: Kernel<CopyRows> = Kernel::typed("copy_rows");

impl CopyRows {
    /// For `copies` rows.
    ///
    /// # Safety
    /// As [`FillRows::launch`].
    pub unsafe fn launch(self, gpu: &Gpu, copies: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { COPY.launch(gpu, Grid::new(copies, 128), self) }
    }
}

/// Tokens of a block that looks for the best.
const BEST_TOKENS: usize = 8192;
const THREADS: usize = 1024;

/// As many partial bests as a row has.
pub fn best_blocks(vocab: usize) -> usize {
    vocab.div_ceil(BEST_TOKENS)
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct BestOfRows {
    logits: DevicePtr<f32>,
    best: DevicePtr<f32>,
    best_row: DevicePtr<i32>,
    vocab: i32,
}

mirrored! {
    BestOfRows: 32 { logits: 0, best: 8, best_row: 16, vocab: 24 }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct PickRows {
    best: DevicePtr<f32>,
    best_row: DevicePtr<i32>,
    written: DevicePtr<i32>,
    state: DevicePtr<DecodeState>,
    blocks: i32,
    room: i32,
}

mirrored! {
    PickRows: 40 { best: 0, best_row: 8, written: 16, state: 24, blocks: 32, room: 36 }
}

const BEST: Kernel<BestOfRows> = Kernel::plain("best_of_rows");
const PICK: Kernel<PickRows> = Kernel::plain("pick_rows");

/// The likeliest token of each row is the next to be read, where the row's state wants one.
#[derive(Debug, Clone, Copy)]
pub struct Likeliest {
    /// `[rows, vocab]`.
    pub logits: DevicePtr<f32>,
    /// `[rows, best_blocks(vocab)]`.
    pub best: DevicePtr<f32>,
    /// As `best`.
    pub best_row: DevicePtr<i32>,
    /// `[rows, room]`, `room` being no less than any state's limit.
    pub written: DevicePtr<i32>,
    /// `[rows]`.
    pub state: DevicePtr<DecodeState>,
    pub vocab: usize,
    pub room: usize,
}

impl Likeliest {
    /// For `rows` rows.
    ///
    /// # Safety
    /// As [`FillRows::launch`].
    pub unsafe fn launch(self, gpu: &Gpu, rows: usize) -> Result<()> {
        let Self { logits, best, best_row, written, state, vocab, room } = self;
        let blocks = best_blocks(vocab);
        let find = BestOfRows { logits, best, best_row, vocab: vocab as i32 };
        let pick = PickRows { best, best_row, written, state, blocks: blocks as i32, room: room as i32 };
        // SAFETY: the caller's.
        unsafe {
            BEST.launch(gpu, Grid::new(blocks, THREADS).rows(rows), find)?;
            PICK.launch(gpu, Grid::new(rows, THREADS), pick)
        }
    }
}
