//! Products with operands in bf16 and sums in f32, on processors with AVX512-BF16.
//!
//! An instruction multiplies 16 pairs of numbers with 16 others and adds each pair's products to a sum, so both
//! operands are copied as pairs along the sum: of the rows of the result a pair of each of eight rows, of its columns a
//! pair of each of 48. Rounding is to the nearest bf16, as a GPU has it. The order in which an element is summed
//! up does not depend on the number of threads.

use std::arch::x86_64::*;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::LazyLock;

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::{SMALL, TASK_ROWS, Target, each, grow, part, turn};
use crate::ops::gemm::Mat;

const LANES: usize = 16;
/// Rows of a tile.
const HIGH: usize = 8;
/// Columns of a tile.
const WIDE: usize = 3 * LANES;
/// Pairs that are multiplied at a time: a strip of them stays in a core's first cache.
const DEPTH: usize = 128;
/// Pairs that are copied at a time.
const COPIED: usize = 384;
/// Pairs of rows that are copied together: they stay in the second cache.
const ROWS: usize = 1 << 16;
/// Pairs of columns that are copied together, for the same reason.
const COLUMNS: usize = 1 << 17;
/// Columns in a task, where there are many.
const TASK_COLUMNS: usize = 768;

/// Room for pairs; as floats, for they are moved as such.
#[derive(Default)]
struct Room {
    numbers: Vec<f32>,
    vectors: Vec<f32>,
    rows: Vec<f32>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
    static WANTED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the processor has the instructions.
pub fn is_there() -> bool {
    is_x86_feature_detected!("avx512bf16")
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// Threads whose products of many rows (`matmul`) are of operands in bf16; `None` if there are no threads to be had.
///
/// (Of the thread, not an argument of each product: all of a training step's are, through every op that has one. Threads
/// of their own, for one that waits takes up what else its pool has to do, such as the step of another trainer, in f32.)
pub(super) fn pool(threads: usize) -> Option<ThreadPool> {
    let name = |i| format!("bf16-{i}");
    let start = |_| WANTED.set(is_there());
    ThreadPoolBuilder::new().num_threads(threads).thread_name(name).start_handler(start).build().ok()
}

/// Calls `f` on threads whose products are of operands in bf16.
pub fn within<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    static POOL: LazyLock<Option<ThreadPool>> = LazyLock::new(|| pool(rayon::current_num_threads()));
    match &*POOL {
        Some(pool) => pool.install(f),
        None => f(),
    }
}

/// Whether products are wanted in bf16 on this thread, where the processor has them.
pub(super) fn is_wanted() -> bool {
    WANTED.get()
}

/// `a b`; the processor must have the instructions.
pub(super) fn multiply(target: &Target, a: Mat<'_>, b: Mat<'_>) {
    assert!(is_there(), "products in bf16 on a processor without them");
    let (m, k, n) = (a.rows, a.cols, b.cols);
    let threads = rayon::current_num_threads();
    let (row_parts, column_parts) = match () {
        () if threads == 1 || m * n * k <= SMALL => (1, 1),
        () if m >= 4 * TASK_ROWS => (m.div_ceil(TASK_ROWS), 1),
        () if n >= 4 * TASK_COLUMNS => (1, n.div_ceil(TASK_COLUMNS)),
        () => {
            let columns = threads.min(n.div_ceil(LANES));
            (threads.div_ceil(columns).min(m.div_ceil(HIGH)), columns)
        }
    };
    each(row_parts, column_parts, |i, j| {
        let (rows, columns) = (part(m, HIGH, row_parts, i), part(n, LANES, column_parts, j));
        ROOM.with_borrow_mut(|room| block(target, a, b, (rows, columns), room));
    });
}

/// Rows and columns of the product, on the calling thread.
fn block(
    target: &Target,
    a: Mat<'_>,
    b: Mat<'_>,
    (rows, columns): (Range<usize>, Range<usize>),
    room: &mut Room,
) {
    let Room { numbers, vectors, rows: of_rows } = room;
    let k = a.cols;
    for first in (0..k).step_by(2 * COPIED) {
        let places = first..k.min(first + 2 * COPIED);
        let pairs = places.len().div_ceil(2);
        let together = (ROWS / pairs / HIGH).max(1) * HIGH;
        let side_by_side = (COLUMNS / pairs / WIDE).max(1) * WIDE;
        for first_row in rows.clone().step_by(together) {
            let some_rows = first_row..rows.end.min(first_row + together);
            copy(a, some_rows.clone(), places.clone(), HIGH, numbers, of_rows);
            for first_column in columns.clone().step_by(side_by_side) {
                let some_columns = first_column..columns.end.min(first_column + side_by_side);
                copy(b.t(), some_columns.clone(), places.clone(), WIDE, vectors, of_rows);
                for (strip, column) in some_columns.clone().step_by(WIDE).enumerate() {
                    let width = WIDE.min(some_columns.end - column);
                    for from in (0..pairs).step_by(DEPTH) {
                        let depth = DEPTH.min(pairs - from);
                        let accumulate = target.accumulate || first + from > 0;
                        for (panel, row) in some_rows.clone().step_by(HIGH).enumerate() {
                            let height = HIGH.min(some_rows.end - row);
                            // SAFETY: both have `pairs` pairs of their rows and columns, and these places of the
                            // target are this task's alone.
                            unsafe {
                                let numbers = numbers.as_ptr().add((panel * pairs + from) * HIGH);
                                let vectors = vectors.as_ptr().add((strip * pairs + from) * WIDE);
                                let start = target.start.add(row * target.stride + column);
                                let to = Target { start, accumulate, ..*target };
                                tile(numbers, vectors, depth, (height, width), &to);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Pairs of the numbers in `places` of the rows `lanes` of `m`, in strips of `wide` rows: for each pair one of each
/// row. What is above the last row, and behind the last place, is zero.
fn copy(
    m: Mat<'_>,
    lanes: Range<usize>,
    places: Range<usize>,
    wide: usize,
    room: &mut Vec<f32>,
    of_rows: &mut Vec<f32>,
) {
    let pairs = places.len().div_ceil(2);
    let strips = lanes.len().div_ceil(wide);
    grow(room, strips * wide * pairs);
    let room = &mut room[..strips * wide * pairs];
    if !lanes.len().is_multiple_of(wide) {
        room[(strips - 1) * wide * pairs..].fill(0.0);
    }
    if m.col_stride == 1 {
        for (strip, first) in room.chunks_exact_mut(wide * pairs).zip(lanes.clone().step_by(wide)) {
            let count = wide.min(lanes.end - first);
            grow(of_rows, count * pairs);
            for (lane, row) in of_rows[..count * pairs].chunks_exact_mut(pairs).enumerate() {
                let from = (first + lane) * m.row_stride;
                // SAFETY: the processor has the instructions.
                unsafe { pairs_of(&m.data[from + places.start..from + places.end], row) };
            }
            turn(of_rows, pairs, (count, pairs), strip, wide);
        }
        return;
    }
    // Rows of memory as a whole, one after the other: a few numbers of each at a time would come slowly.
    for pair in 0..pairs {
        let row = |place: usize| {
            let there = place < places.end;
            there.then(|| &m.data[lanes.start * m.row_stride + place * m.col_stride..])
        };
        let (low, high) = (row(places.start + 2 * pair), row(places.start + 2 * pair + 1));
        for (strip, first) in (0..lanes.len()).step_by(wide).enumerate() {
            let to = &mut room[(strip * pairs + pair) * wide..][..wide.min(lanes.len() - first)];
            if m.row_stride == 1 {
                let end = first + to.len();
                let (low, high) = (low.map(|row| &row[first..end]), high.map(|row| &row[first..end]));
                // SAFETY: the processor has the instructions.
                unsafe { woven(low, high, to) };
            } else {
                let half = |row: Option<&[f32]>, lane: usize| {
                    row.map_or(0, |row| half::bf16::from_f32(row[(first + lane) * m.row_stride]).to_bits())
                };
                for (lane, to) in to.iter_mut().enumerate() {
                    *to = f32::from_bits(u32::from(half(low, lane)) | u32::from(half(high, lane)) << 16);
                }
            }
        }
    }
}

/// The first `count` of 16 lanes, all of them if there are more.
#[target_feature(enable = "avx512f")]
fn first(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// Neighbouring numbers of a row as pairs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn pairs_of(row: &[f32], pairs: &mut [f32]) {
    assert_eq!(pairs.len(), row.len().div_ceil(2), "a pair of two numbers");
    for (row, pairs) in row.chunks(2 * LANES).zip(pairs.chunks_mut(LANES)) {
        let (low, high) = row.split_at(row.len().min(LANES));
        // SAFETY: the masks have what is there.
        unsafe {
            let low = _mm512_maskz_loadu_ps(first(low.len()), low.as_ptr());
            let high = _mm512_maskz_loadu_ps(first(high.len()), high.as_ptr());
            let both = std::mem::transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_ps(pairs.as_mut_ptr(), first(pairs.len()), both);
        }
    }
}

/// Pairs of a number of one row and that of the other in its place.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn woven(low: Option<&[f32]>, high: Option<&[f32]>, pairs: &mut [f32]) {
    let halves = |row: Option<&[f32]>, at: usize, mask: __mmask16| match row {
        None => _mm512_setzero_si512(),
        Some(row) => {
            // SAFETY: the mask has what is there.
            let row = unsafe { _mm512_maskz_loadu_ps(mask, row[at..].as_ptr()) };
            // SAFETY: both are 32 bytes of any bits.
            let half = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(row)) };
            _mm512_cvtepu16_epi32(half)
        }
    };
    assert!([low, high].into_iter().flatten().all(|row| row.len() == pairs.len()), "rows of one length");
    for at in (0..pairs.len()).step_by(LANES) {
        let mask = first(pairs.len() - at);
        let (low, high) = (halves(low, at, mask), halves(high, at, mask));
        let both = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(pairs[at..].as_mut_ptr(), mask, _mm512_castsi512_ps(both)) };
    }
}

/// A tile of `height` rows and `width` columns, from `depth` pairs of [`HIGH`] numbers and of [`WIDE`] columns.
///
/// # Safety
/// All of them must be there, the target must have the tile, and nobody else may have it; the processor must have the
/// instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile(
    numbers: *const f32,
    vectors: *const f32,
    depth: usize,
    (height, width): (usize, usize),
    to: &Target,
) {
    // SAFETY: the caller's.
    unsafe {
        match width.div_ceil(LANES) {
            1 => put(sums::<1>(numbers, vectors, depth), height, width, to),
            2 => put(sums::<2>(numbers, vectors, depth), height, width, to),
            _ => put(sums::<3>(numbers, vectors, depth), height, width, to),
        }
    }
}

/// # Safety
/// As for [`tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
#[inline]
unsafe fn sums<const V: usize>(
    numbers: *const f32,
    vectors: *const f32,
    depth: usize,
) -> [[__m512; V]; HIGH] {
    let mut sums = [[_mm512_setzero_ps(); V]; HIGH];
    for pair in 0..depth {
        let mut row = [_mm512_setzero_si512(); V];
        for (v, to) in row.iter_mut().enumerate() {
            // SAFETY: the vectors are whole, by the caller.
            *to = unsafe { _mm512_loadu_si512(vectors.add(pair * WIDE + v * LANES).cast()) };
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            // SAFETY: there are `HIGH` numbers for each pair, by the caller.
            let number = unsafe { _mm512_set1_epi32(numbers.add(pair * HIGH + i).cast::<i32>().read()) };
            for (sum, row) in sums.iter_mut().zip(&row) {
                // SAFETY: all are 64 bytes of any bits.
                let (number, row) = unsafe {
                    (
                        std::mem::transmute::<__m512i, __m512bh>(number),
                        std::mem::transmute::<__m512i, __m512bh>(*row),
                    )
                };
                *sum = _mm512_dpbf16_ps(*sum, number, row);
            }
        }
    }
    sums
}

/// # Safety
/// The target has the tile, and nobody else has it.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn put<const V: usize>(sums: [[__m512; V]; HIGH], height: usize, width: usize, to: &Target) {
    let alpha = _mm512_set1_ps(to.alpha);
    for (i, sums) in sums.iter().enumerate().take(height) {
        for (v, sum) in sums.iter().enumerate() {
            let mask = first(width - v * LANES);
            // SAFETY: inside of the tile, by the caller and the mask.
            unsafe {
                let place = to.start.add(i * to.stride + v * LANES);
                let new = match to.accumulate {
                    true => _mm512_fmadd_ps(alpha, *sum, _mm512_maskz_loadu_ps(mask, place)),
                    false => _mm512_mul_ps(alpha, *sum),
                };
                _mm512_mask_storeu_ps(place, mask, new);
            }
        }
    }
}
