//! Products of a file's blocks with rows that are rounded to whole numbers of sixteen bits, with AVX512-VNNI.
//!
//! A block holds whole numbers of four to eight bits and a scale. Where x is whole numbers, too, products are added
//! up exactly in 32 bits, two multiplications in each lane of one instruction, and only each run of 32 (or 16) is
//! multiplied with its scales: about half the instructions that f32 takes.
//!
//! x is rounded for each run of 32 numbers to a 32,767th of the largest of them, which moves a sum by about 1e-5 of
//! its terms' size: a hundredth of what eight bits do, as llama.cpp has them, and more than f32's own order of sums.
//! A row's sums are the same, bit for bit, alone and among others: they are whole numbers within a run, and the
//! runs are added in their order.

mod ahead;
mod panel;
mod round;
#[cfg(test)]
mod tests;
mod tile;

use std::cell::RefCell;
use std::ops::Range;

use super::Target;
use super::stored::Numbers;
use panel::{Panel, WIDE};
pub use round::Rounded;

thread_local! {
    static PANEL: RefCell<Panel> = RefCell::new(Panel::default());
}

/// Whether the machine has the instructions.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
}

/// The rows of `x` with rows `w_rows` of the blocks in `w`, whose rows are as long.
///
/// # Safety
/// [`is_there`] must have said yes, `w_rows` must be in `w`, and nobody else may have these elements of `target`.
pub(super) unsafe fn block<F: Numbers>(x: &Rounded, w: &[u8], w_rows: Range<usize>, target: &Target) {
    let row = x.k() / F::VALUES * F::BYTES;
    PANEL.with_borrow_mut(|panel| {
        for first in w_rows.clone().step_by(WIDE) {
            let rows = first..w_rows.end.min(first + WIDE);
            // Half of what follows is fetched while these are unpacked, the rest while they are multiplied.
            let next = &w[rows.end * row..w_rows.end.min(rows.end + WIDE) * row];
            let (early, late) = next.split_at(next.len() / 2);
            // SAFETY: the rows are there and the machine has the instructions, by the caller.
            unsafe {
                panel.fill::<F>(&w[rows.start * row..rows.end * row], x.k(), early);
                if x.rows() > 1 {
                    panel.turn();
                }
                let start = target.start.add(first - w_rows.start);
                tile::rows::<F>(x, panel, rows.len(), &Target { start, ..*target }, late);
            }
        }
    });
}
