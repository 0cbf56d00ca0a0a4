//! Launches of kernels whose blocks have a row each, or a few rows.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::{Grid, Kernel};

/// Threads of a block.
pub const THREADS: usize = 512;

/// Puts a kernel on the stream for `rows` rows, each of which takes `bytes` of shared memory: of its versions for one row
/// a block, two, and four the one with as many as fit, up to `a_block`.
///
/// # Safety
/// As [`Kernel::launch`], for all of the rows.
pub unsafe fn launch<A: Copy>(
    [one, two, four]: [&Kernel<A>; 3],
    gpu: &Gpu,
    rows: usize,
    a_block: usize,
    bytes: usize,
    arguments: A,
) -> Result<()> {
    let in_a_block = rows_a_block(a_block, rows, bytes, gpu.limits().shared_bytes);
    let kernel = match in_a_block {
        4 => four,
        2 => two,
        _ => one,
    };
    let grid = Grid::new(rows / in_a_block, THREADS).shared(in_a_block * bytes).begins_early();
    // SAFETY: the caller's.
    unsafe { kernel.launch(gpu, grid, arguments) }
}

/// The same for many rows without adapters, a block of `threads` each.
///
/// # Safety
/// As [`launch`].
pub unsafe fn launch_many<A: Copy>(
    kernel: &Kernel<A>,
    gpu: &Gpu,
    rows: usize,
    threads: usize,
    bytes: usize,
    arguments: A,
) -> Result<()> {
    let grid = Grid::new(rows, threads).shared(bytes).begins_early();
    // SAFETY: the caller's.
    unsafe { kernel.launch(gpu, grid, arguments) }
}

/// Threads for a row of `width` values where there are many rows: few, so that several blocks share a
/// multiprocessor.
pub fn threads_for_many(width: usize) -> usize {
    (width / 4).next_multiple_of(32).clamp(64, 256)
}

/// How many of `wanted` rows, a power of two, a block can have of a kernel that takes `bytes` for each, where a block may
/// have `most`, and there are `rows` in all, the same number in every block.
fn rows_a_block(wanted: usize, rows: usize, bytes: usize, most: usize) -> usize {
    let fits = |n: &usize| rows.is_multiple_of(*n) && n * (bytes + 512) <= most;
    std::iter::successors(Some(wanted), |n| Some(n / 2)).take_while(|n| *n > 1).find(fits).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::rows_a_block;

    #[test]
    fn a_block_has_as_many_rows_as_fit() {
        assert_eq!(rows_a_block(4, 464, 8192, 227 << 10), 4);
        assert_eq!(rows_a_block(4, 464, 90 << 10, 227 << 10), 2);
        assert_eq!(rows_a_block(4, 464, 120 << 10, 227 << 10), 1);
        assert_eq!(rows_a_block(4, 466, 8192, 227 << 10), 2);
        assert_eq!(rows_a_block(4, 7, 8192, 227 << 10), 1);
        assert_eq!(rows_a_block(1, 464, 8192, 227 << 10), 1);
    }
}
