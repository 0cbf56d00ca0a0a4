//! The embedding on a GPU.

use crate::cuda::Gpu;
use crate::cuda::launch::{Grid, launch};
use crate::error::Result;

/// Rows `ids` of the table, scaled. The table is f32 or of the compute type.
///
/// # Safety
/// `x` must be f32 `[tokens, width]`, every id a row of the table.
pub(crate) unsafe fn forward(
    gpu: &Gpu,
    (table, is_f32): (u64, bool),
    ids: u64,
    x: u64,
    (tokens, width): (usize, usize),
    scale: f32,
) -> Result<()> {
    let kernel = if is_f32 { "embedding_forward_f32" } else { "embedding_forward_bf16" };
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain kernel, Grid::new(tokens, 128), table, ids, x, width as i32, scale) }
}

/// [`forward`] from a table in halves (`adamw::cuda::split`).
///
/// # Safety
/// As [`forward`].
pub(crate) unsafe fn forward_split(
    gpu: &Gpu,
    (high, low): (u64, u64),
    ids: u64,
    x: u64,
    (tokens, width): (usize, usize),
    scale: f32,
) -> Result<()> {
    let grid = Grid::new(tokens, 128);
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain "embedding_forward_split", grid, high, low, ids, x, width as i32, scale) }
}

/// What [`backward`] is told of a batch: the tokens sorted by id, those of one id in their own order;
/// and for every place in that order how many tokens the id has that begins there, 0 if none does.
pub(crate) fn by_id(ids: &[i32]) -> (Vec<i32>, Vec<i32>) {
    let mut order: Vec<i32> = (0..ids.len() as i32).collect();
    order.sort_unstable_by_key(|t| (ids[*t as usize], *t));
    let mut runs = vec![0; ids.len()];
    let mut first = 0;
    for run in order.chunk_by(|a, b| ids[*a as usize] == ids[*b as usize]) {
        runs[first] = run.len() as i32;
        first += run.len();
    }
    (order, runs)
}

/// Adds the gradient of the rows. `order` and `runs` are [`by_id`]'s.
///
/// # Safety
/// As [`forward`]; `dx` is f32, `d_table` f32 or of the compute type.
pub(crate) unsafe fn backward(
    gpu: &Gpu,
    (d_table, is_f32): (u64, bool),
    (ids, order, runs): (u64, u64, u64),
    dx: u64,
    (tokens, width): (usize, usize),
    scale: f32,
) -> Result<()> {
    let grid = Grid::new(tokens, 128);
    let kernel = if is_f32 { "embedding_backward_f32" } else { "embedding_backward_bf16" };
    // SAFETY: the caller's.
    unsafe { launch!(gpu, plain kernel, grid, d_table, ids, order, runs, dx, width as i32, scale) }
}
