//! Products for training on processors with AVX2 or AVX-512.
//!
//! A general product copies both operands into an order of its own first. In training one of them is a weight, or
//! has as many rows as a vocabulary, and the other a hundred tokens: copying costs about as much as multiplying.
//! Here a tile of the result is a few rows by a few vectors, and of its two operands
//!
//! * one gives numbers that are multiplied with whole vectors: copied in small blocks if they are the tokens, read
//!   where they lie if they are a weight;
//! * the other gives vectors of numbers that lie side by side, copied in strips if several tiles read them. Where a
//!   weight's numbers lie one below another (`x wᵀ`), the product is turned around, so that it is the tokens that
//!   are copied and the weight gives the numbers.
//!
//! The order in which an element is summed up does not depend on the number of threads.

pub(super) mod bf16;
mod x86;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::Mat;
use x86::{Kernels, transpose};

/// Numbers of an element's sum that are added up in a register, where vectors are copied: a strip of them `DEPTH`
/// deep stays in a core's first cache.
const DEPTH: usize = 192;

/// Rows whose numbers are copied together.
const ROWS: usize = 96;

/// Vectors of a tile's width.
const WIDE: usize = 3;

/// Rows of a weight in a task, where the weight has the most.
const TASK_ROWS: usize = 256;

/// Numbers of the tokens that are turned together.
const CACHED: usize = 1 << 17;

/// Multiplications that are not worth a second thread.
const SMALL: usize = 1 << 16;

/// Tiles one above the other from which on vectors are copied.
const COPIES: usize = 4;

/// Room for what is copied.
struct Room {
    numbers: Vec<f32>,
    vectors: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room { numbers: vec![], vectors: vec![] }) };
}

/// A result, which tasks write to in places of their own.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    /// Numbers from a row to the next.
    stride: usize,
    accumulate: bool,
    alpha: f32,
}

// SAFETY: tasks write to rows and columns of their own, and read nothing of others'.
unsafe impl Sync for Target {}

/// [`super::matmul`], if the processor has the instructions; says whether it was done.
pub(super) fn matmul(out: &mut [f32], accumulate: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) -> bool {
    let Some(kernels) = Kernels::of_this_machine() else { return false };
    let target = Target { start: out.as_mut_ptr(), stride: b.cols, accumulate, alpha };
    if bf16::is_wanted() {
        bf16::multiply(&target, a, b);
        return true;
    }
    multiply(kernels, &target, a, b);
    true
}

fn multiply(kernels: Kernels, target: &Target, a: Mat<'_>, b: Mat<'_>) {
    if b.col_stride == 1 {
        rows_of(kernels, target, a, b);
    } else if a.rows <= b.cols {
        // `bᵀ` is row-major: its rows are the numbers, and the tokens, turned, the vectors.
        turned(kernels, target, a, b);
    } else {
        let rows = turned_copy(b);
        rows_of(kernels, target, a, Mat::new(&rows, b.rows, b.cols));
    }
}

/// A row-major copy.
fn turned_copy(m: Mat<'_>) -> Vec<f32> {
    let mut rows = vec![0.0; m.rows * m.cols];
    rows.par_chunks_mut(m.cols).enumerate().for_each(|(i, row)| {
        for (j, value) in row.iter_mut().enumerate() {
            *value = m.data[i * m.row_stride + j * m.col_stride];
        }
    });
    rows
}

/// How many tasks rows and columns are cut into.
fn cuts(kernels: Kernels, m: usize, n: usize, k: usize) -> (usize, usize) {
    let threads = rayon::current_num_threads();
    if threads == 1 || m * n * k <= SMALL {
        return (1, 1);
    }
    if m >= 4 * TASK_ROWS {
        return (m.div_ceil(TASK_ROWS), 1);
    }
    let columns = threads.min(n.div_ceil(WIDE * kernels.lanes())).max(1);
    (threads.div_ceil(columns).min(m.div_ceil(kernels.rows())).max(1), columns)
}

/// Calls `task` with every pair of `rows` × `columns`, on all threads.
fn each(rows: usize, columns: usize, task: impl Fn(usize, usize) + Sync) {
    match rows * columns {
        1 => task(0, 0),
        tasks => (0..tasks).into_par_iter().for_each(|i| task(i / columns, i % columns)),
    }
}

/// Part `i` of `parts` of `len`, in whole `unit`s.
fn part(len: usize, unit: usize, parts: usize, i: usize) -> Range<usize> {
    let units = len.div_ceil(unit);
    let at = |i: usize| (units * i / parts * unit).min(len);
    at(i)..at(i + 1)
}

/// `a b` with `b`'s rows as vectors.
fn rows_of(kernels: Kernels, target: &Target, a: Mat<'_>, b: Mat<'_>) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let (high, wide) = (kernels.rows(), WIDE * kernels.lanes());
    let (row_parts, column_parts) = cuts(kernels, m, n, k);
    each(row_parts, column_parts, |i, j| {
        let (rows, columns) = (part(m, high, row_parts, i), part(n, kernels.lanes(), column_parts, j));
        // Rows that are many are worth a copy of the vectors in the order in which they are read: where they lie,
        // each is in a memory page of its own.
        let copies = rows.len() >= COPIES * high;
        ROOM.with_borrow_mut(|Room { numbers, vectors }| {
            grow(numbers, ROWS * DEPTH);
            grow(vectors, if copies { columns.len().next_multiple_of(wide) * DEPTH } else { 0 });
            for first in (0..k).step_by(DEPTH) {
                let depth = DEPTH.min(k - first);
                if copies {
                    copy_strips(b, first..first + depth, columns.clone(), wide, vectors);
                }
                for first_row in rows.clone().step_by(ROWS) {
                    let block = first_row..rows.end.min(first_row + ROWS);
                    copy_panels(a, block.clone(), first..first + depth, high, target.alpha, numbers);
                    let to = Target { accumulate: target.accumulate || first > 0, alpha: 1.0, ..*target };
                    for (strip, column) in columns.clone().step_by(wide).enumerate() {
                        let width = columns.end.min(column + wide) - column;
                        let (from, stride) = match copies {
                            true => (&vectors[strip * wide * depth..], wide),
                            false => (&b.data[first * b.row_stride + column..], b.row_stride),
                        };
                        for (panel, row) in numbers.chunks(high * depth).zip(block.clone().step_by(high)) {
                            let height = high.min(block.end - row);
                            // SAFETY: the panel has `depth` times `high` numbers, `from` that many rows of
                            // `width`, and these places of the target are this task's alone.
                            unsafe {
                                let place = to.start.add(row * to.stride + column);
                                let to = Target { start: place, ..to };
                                kernels.panel(panel, depth, from.as_ptr(), stride, (height, width), &to);
                            }
                        }
                    }
                }
            }
        });
    });
}

fn grow(room: &mut Vec<f32>, len: usize) {
    if room.len() < len {
        room.resize(len, 0.0);
    }
}

/// Rows of `b` in strips of `wide` columns, one strip behind the other.
fn copy_strips(b: Mat<'_>, rows: Range<usize>, columns: Range<usize>, wide: usize, room: &mut [f32]) {
    let depth = rows.len();
    for (place, row) in rows.enumerate() {
        let row = &b.data[row * b.row_stride..][columns.clone()];
        for (strip, values) in row.chunks(wide).enumerate() {
            room[(strip * depth + place) * wide..][..values.len()].copy_from_slice(values);
        }
    }
}

/// `to` gets the columns of `from`, of `(rows, columns)` numbers in rows that are `stride` apart, as rows `to_stride`
/// apart.
fn turn(from: &[f32], stride: usize, (rows, columns): (usize, usize), to: &mut [f32], to_stride: usize) {
    assert!(from.len() >= (rows - 1) * stride + columns && to.len() >= (columns - 1) * to_stride + rows);
    // SAFETY: all of it is there, and `to` is ours.
    unsafe { transpose(from.as_ptr(), stride, (rows, columns), to.as_mut_ptr(), to_stride) };
}

/// Numbers of `a`, times `alpha`, in panels of `high` rows: for each place in the sum one number of each row.
fn copy_panels(
    a: Mat<'_>,
    rows: Range<usize>,
    places: Range<usize>,
    high: usize,
    alpha: f32,
    room: &mut [f32],
) {
    for (panel, first) in room.chunks_mut(high * places.len()).zip(rows.clone().step_by(high)) {
        let height = high.min(rows.end - first);
        if height < high {
            panel.fill(0.0);
        }
        if a.row_stride == 1 {
            for (numbers, place) in panel.chunks_mut(high).zip(places.clone()) {
                let from = &a.data[place * a.col_stride + first..][..height];
                for (number, value) in numbers.iter_mut().zip(from) {
                    *number = alpha * value;
                }
            }
        } else {
            turn(
                &a.data[first * a.row_stride + places.start..],
                a.row_stride,
                (height, places.len()),
                panel,
                high,
            );
            if alpha != 1.0 {
                panel.iter_mut().for_each(|number| *number *= alpha);
            }
        }
    }
}

/// `a b` with the rows of `bᵀ`, which lie as rows, as numbers, and the columns of `aᵀ` as vectors.
fn turned(kernels: Kernels, target: &Target, a: Mat<'_>, b: Mat<'_>) {
    let (tokens, k, m) = (a.rows, a.cols, b.cols);
    let wide = WIDE * kernels.lanes();
    // Strips of `wide` tokens, one behind the other: rows a power of two apart would fall into few places of a cache.
    let mut vectors = vec![0.0; tokens.div_ceil(wide) * k * wide];
    let turned = |(i, strip): (usize, &mut [f32])| {
        let first = i * wide;
        let width = wide.min(tokens - first);
        match a.col_stride {
            1 => turn(&a.data[first * a.row_stride..], a.row_stride, (width, k), strip, wide),
            apart => {
                for (place, row) in strip.chunks_mut(wide).enumerate() {
                    for (i, value) in row[..width].iter_mut().enumerate() {
                        *value = a.data[(first + i) * a.row_stride + place * apart];
                    }
                }
            }
        }
    };
    match tokens * k <= SMALL {
        true => vectors.chunks_mut(k * wide).enumerate().for_each(turned),
        false => vectors.par_chunks_mut(k * wide).enumerate().for_each(turned),
    }
    let high = kernels.rows();
    let parts = match m * k * tokens <= SMALL {
        true => 1,
        false => m.div_ceil(TASK_ROWS).max(rayon::current_num_threads()).min(m.div_ceil(high)),
    };
    // As many tokens at a time as stay in a core's second cache.
    let together = (CACHED / k.max(1) / wide).max(1) * wide;
    each(parts, 1, |i, _| {
        let rows = part(m, high, parts, i);
        for block in (0..tokens).step_by(together) {
            let last = tokens.min(block + together);
            for row in rows.clone().step_by(high) {
                let height = high.min(rows.end - row);
                for first in (block..last).step_by(wide) {
                    let width = wide.min(last - first);
                    // SAFETY: `bᵀ` has these rows of `k` numbers, `vectors` this many columns, filled up to whole
                    // vectors; these places of the target are this task's alone.
                    unsafe {
                        let numbers = b.data.as_ptr().add(row * b.col_stride);
                        let place = target.start.add(first * target.stride + row);
                        let to = Target { start: place, ..*target };
                        kernels.turned(
                            (numbers, b.col_stride),
                            k,
                            (vectors.as_ptr().add(first * k), wide),
                            (height, width),
                            (&to, first == block),
                        );
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests;
