//! Several rows of x with a weight, with AVX-512 and with AVX2.
//!
//! Six rows of the weight at a time become f32 in a place of their own, which stays in a core's first cache while all
//! rows of x are multiplied with them: blocks are unpacked once for all rows, and each number of x that comes from the
//! second cache is multiplied six times. The weight's next rows are asked for in the meantime.
//!
//! Rows that are longer than [`DEPTH`] are multiplied in pieces, and their partial sums kept in between: six long
//! rows and four of x would not fit into the first cache.

use std::cell::RefCell;
use std::ops::Range;

use super::tile::{HIGH, Piece, Start, tile_256, tile_512};
use super::{Kernels, Matrix, Rows, Target};

/// Rows of a weight that are multiplied together.
pub(super) const PANEL: usize = 6;

/// Numbers of a row that are multiplied at a time.
const DEPTH: usize = 640;

/// Pieces of rows are a multiple of this many numbers, but for the last: all blocks that there are divide it.
const WHOLE: usize = 256;

/// Numbers of x that stay in a core's second cache.
const CACHED: usize = 1 << 17;

/// Rows of x whose partial sums stay in the first one.
const KEPT: usize = 64;

/// The most lanes of a register.
const LANES: usize = 16;

/// Room for a panel in f32, and for partial sums.
struct Room {
    panel: Vec<f32>,
    sums: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = const { RefCell::new(Room { panel: vec![], sums: vec![] }) };
}

fn grow(room: &mut Vec<f32>, len: usize) {
    if room.len() < len {
        room.resize(len, 0.0);
    }
}

/// How long the pieces are that rows of `k` numbers are multiplied in.
fn piece_len(k: usize) -> usize {
    match k.div_ceil(DEPTH) {
        0 | 1 => k,
        pieces => k.div_ceil(pieces).next_multiple_of(WHOLE),
    }
}

/// # Safety
/// As for [`Kernels::block`].
pub(super) unsafe fn block(
    kernels: Kernels,
    x: Rows<'_>,
    w: Matrix<'_>,
    w_rows: Range<usize>,
    target: &Target,
) {
    let k = x.k;
    let depth = piece_len(k);
    let together = if depth < k { KEPT } else { (CACHED / k).max(HIGH) / HIGH * HIGH };
    // A line further apart than they are long: rows of a power of two would fall into few places of a cache.
    let stride = depth.next_multiple_of(LANES) + LANES;
    ROOM.with_borrow_mut(|Room { panel, sums }| {
        grow(panel, PANEL * stride);
        grow(sums, if depth < k { KEPT * PANEL * LANES } else { 0 });
        for first_x in (0..x.rows).step_by(together) {
            let x_rows = first_x..x.rows.min(first_x + together);
            for first in w_rows.clone().step_by(PANEL) {
                let rows = first..w_rows.end.min(first + PANEL);
                for from in (0..k).step_by(depth) {
                    let places = from..k.min(from + depth);
                    fill(kernels, w, k, rows.clone(), places.clone(), panel, stride);
                    for row in x_rows.clone().step_by(HIGH) {
                        // SAFETY: the rows and places are inside of `x`, the panel has theirs, and the rest is the
                        // caller's.
                        unsafe {
                            let piece = Piece {
                                len: places.len(),
                                sums: sums.as_mut_ptr().wrapping_add((row - first_x) * PANEL * LANES),
                                is_first: from == 0,
                                is_last: places.end == k,
                            };
                            let x_start = Start { at: x.row(row).as_ptr().add(from), stride: x.stride };
                            let w_start = Start { at: panel.as_ptr(), stride };
                            let start = target.start.add(row * target.stride + (first - w_rows.start));
                            let target = Target { start, ..*target };
                            let size = (HIGH.min(x_rows.end - row), rows.len());
                            tiles(kernels, x_start, w_start, piece, size, &target);
                        }
                    }
                }
            }
        }
    });
}

/// A tile of [`PANEL`] columns, or two of them.
///
/// # Safety
/// As for [`tile_512`], of `size` rows and columns.
#[inline]
unsafe fn tiles(
    kernels: Kernels,
    x: Start,
    w: Start,
    piece: Piece,
    (rows, width): (usize, usize),
    target: &Target,
) {
    // SAFETY: the caller's.
    unsafe {
        if kernels.is_wide() {
            return match rows {
                1 => tile_512::<1>(x, w, piece, width, target),
                2 => tile_512::<2>(x, w, piece, width, target),
                3 => tile_512::<3>(x, w, piece, width, target),
                _ => tile_512::<4>(x, w, piece, width, target),
            };
        }
        for first in (0..width).step_by(PANEL / 2) {
            let w = Start { at: w.at.add(first * w.stride), ..w };
            let piece = Piece { sums: piece.sums.wrapping_add(first * HIGH * LANES), ..piece };
            let target = Target { start: target.start.add(first), ..*target };
            let width = (PANEL / 2).min(width - first);
            match rows {
                1 => tile_256::<1>(x, w, piece, width, &target),
                2 => tile_256::<2>(x, w, piece, width, &target),
                3 => tile_256::<3>(x, w, piece, width, &target),
                _ => tile_256::<4>(x, w, piece, width, &target),
            }
        }
    }
}

/// `places` of the weight's `rows` in f32, `stride` apart.
fn fill(
    kernels: Kernels,
    w: Matrix<'_>,
    k: usize,
    rows: Range<usize>,
    places: Range<usize>,
    panel: &mut [f32],
    stride: usize,
) {
    match w {
        Matrix::Dense(w) => {
            for (row, to) in rows.zip(panel.chunks_exact_mut(stride)) {
                to[..places.len()].copy_from_slice(&w[row * k..][places.clone()]);
            }
        }
        Matrix::Stored(w) => w.unpack_part(kernels, rows, places, panel, stride),
    }
}
