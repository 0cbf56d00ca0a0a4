//! The embedding on a GPU.

use half::bf16;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{Compute, DevicePtr};

const THREADS: usize = 128;

/// Rows that are looked up, `[vocab, width]`.
#[derive(Debug, Clone, Copy)]
pub enum Table {
    Compute(DevicePtr<Compute>),
    F32(DevicePtr<f32>),
    /// f32 in two halves (`adamw::cuda::split`).
    Halves {
        high: DevicePtr<bf16>,
        low: DevicePtr<i16>,
    },
}

/// Rows `ids` of a table, scaled.
#[derive(Debug, Clone, Copy)]
pub struct Lookup {
    pub table: Table,
    /// `[tokens]`, [`Self::apart`] numbers from one to the next.
    pub ids: DevicePtr<i32>,
    /// `[tokens, width]`.
    pub x: DevicePtr<f32>,
    pub width: usize,
    pub scale: f32,
    pub apart: usize,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct EmbeddingForward<T> {
    table: DevicePtr<T>,
    ids: DevicePtr<i32>,
    x: DevicePtr<f32>,
    width: i32,
    scale: f32,
    apart: i32,
}

mirrored! {
    EmbeddingForward<f32>: 40 { table: 0, ids: 8, x: 16, width: 24, scale: 28, apart: 32 }
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct EmbeddingForwardSplit {
    high: DevicePtr<bf16>,
    low: DevicePtr<i16>,
    ids: DevicePtr<i32>,
    x: DevicePtr<f32>,
    width: i32,
    scale: f32,
    apart: i32,
}

mirrored! {
    EmbeddingForwardSplit: 48 { high: 0, low: 8, ids: 16, x: 24, width: 32, scale: 36, apart: 40 }
}

const FORWARD: Kernel<EmbeddingForward<Compute>> = Kernel::typed("embedding_forward");
const FORWARD_F32: Kernel<EmbeddingForward<f32>> = Kernel::plain("embedding_forward_f32");
const FORWARD_SPLIT: Kernel<EmbeddingForwardSplit> = Kernel::plain("embedding_forward_split");

impl Lookup {
    /// For `tokens` rows.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name, and every id be a row of the table.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let grid = Grid::new(tokens, THREADS);
        let Self { ids, x, scale, .. } = self;
        let (width, apart) = (self.width as i32, self.apart as i32);
        // SAFETY: the caller's.
        unsafe {
            match self.table {
                Table::Compute(table) => {
                    FORWARD.launch(gpu, grid, EmbeddingForward { table, ids, x, width, scale, apart })
                }
                Table::F32(table) => {
                    FORWARD_F32.launch(gpu, grid, EmbeddingForward { table, ids, x, width, scale, apart })
                }
                Table::Halves { high, low } => FORWARD_SPLIT.launch(
                    gpu,
                    grid,
                    EmbeddingForwardSplit { high, low, ids, x, width, scale, apart },
                ),
            }
        }
    }
}

/// Puts rows that are trained apart from their table into it, in the table's type.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct PutRows {
    /// `[ids, width]`.
    pub rows: DevicePtr<f32>,
    /// `[ids]`: which rows of the table they are.
    pub ids: DevicePtr<i32>,
    /// `[vocab, width]`.
    pub table: DevicePtr<Compute>,
    pub width: i32,
}

mirrored! {
    PutRows: 32 { rows: 0, ids: 8, table: 16, width: 24 }
}

const PUT_ROWS: Kernel<PutRows> = Kernel::typed("put_rows");

impl PutRows {
    /// For `count` rows.
    ///
    /// # Safety
    /// As [`Lookup::launch`].
    pub unsafe fn launch(self, gpu: &Gpu, count: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { PUT_ROWS.launch(gpu, Grid::new(count, THREADS), self) }
    }
}

/// What [`LookupGradient`] is told of a batch: the tokens sorted by id, those of one id in their own
/// order; and for every place in that order how many tokens the id has that begins there, 0 if none does.
/// A negative id is of no row, and has no tokens.
pub fn by_id(ids: &[i32]) -> (Vec<i32>, Vec<i32>) {
    let mut order: Vec<i32> = (0..ids.len() as i32).collect();
    order.sort_unstable_by_key(|t| (ids[*t as usize], *t));
    let mut runs = vec![0; ids.len()];
    let mut first = 0;
    for run in order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
        runs[first] = if ids[run[0] as usize] < 0 { 0 } else { run.len() as i32 };
        first += run.len();
    }
    (order, runs)
}

/// Where the gradient of the rows is added, `[vocab, width]`.
#[derive(Debug, Clone, Copy)]
pub enum TableGradient {
    Compute(DevicePtr<Compute>),
    F32(DevicePtr<f32>),
}

/// Adds the gradient of the rows.
#[derive(Debug, Clone, Copy)]
pub struct LookupGradient {
    pub d_table: TableGradient,
    /// `[tokens]`.
    pub ids: DevicePtr<i32>,
    /// `[tokens]`, of [`by_id`].
    pub order: DevicePtr<i32>,
    /// `[tokens]`, of [`by_id`].
    pub runs: DevicePtr<i32>,
    /// `[tokens, width]`.
    pub dx: DevicePtr<f32>,
    pub width: usize,
    pub scale: f32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct EmbeddingBackward<T> {
    d_table: DevicePtr<T>,
    ids: DevicePtr<i32>,
    order: DevicePtr<i32>,
    runs: DevicePtr<i32>,
    dx: DevicePtr<f32>,
    width: i32,
    scale: f32,
}

mirrored! {
    EmbeddingBackward<f32>: 48 { d_table: 0, ids: 8, order: 16, runs: 24, dx: 32, width: 40, scale: 44 }
}

const BACKWARD: Kernel<EmbeddingBackward<Compute>> = Kernel::typed("embedding_backward");
const BACKWARD_F32: Kernel<EmbeddingBackward<f32>> = Kernel::plain("embedding_backward_f32");

impl LookupGradient {
    /// For `tokens` rows.
    ///
    /// # Safety
    /// As [`Lookup::launch`].
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let grid = Grid::new(tokens, THREADS);
        let Self { ids, order, runs, dx, scale, .. } = self;
        let width = self.width as i32;
        // SAFETY: the caller's.
        unsafe {
            match self.d_table {
                TableGradient::Compute(d_table) => {
                    let arguments = EmbeddingBackward { d_table, ids, order, runs, dx, width, scale };
                    BACKWARD.launch(gpu, grid, arguments)
                }
                TableGradient::F32(d_table) => {
                    let arguments = EmbeddingBackward { d_table, ids, order, runs, dx, width, scale };
                    BACKWARD_F32.launch(gpu, grid, arguments)
                }
            }
        }
    }
}
