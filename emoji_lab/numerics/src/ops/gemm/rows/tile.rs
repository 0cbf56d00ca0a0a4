//! Tiles of sums, up to [`HIGH`] rows of x by some of a weight's, with AVX-512 and with AVX2.
//!
//! Every sum has a register of partial sums of its own, to which each step adds as many products as it has lanes: that
//! is the order in which one row's sums are added up. The registers are added up at the end, many of them at a time.

use std::arch::x86_64::*;

use super::Target;
use super::x86::{fold_256, sums_of};

/// Rows of x of a tile.
pub(super) const HIGH: usize = 4;

/// Rows that are there, in steps of `stride` numbers, of which a tile takes the first `HIGH` or its width.
#[derive(Clone, Copy)]
pub(super) struct Start {
    pub(super) at: *const f32,
    pub(super) stride: usize,
}

/// Where a tile's partial sums come from, and where they go.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// Numbers of each row.
    pub(super) len: usize,
    /// Room for the partial sums of rows that are multiplied in pieces.
    pub(super) sums: *mut f32,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

macro_rules! tile {
    ($name:ident, $sums:ident, $features:literal, wide: $wide:literal, lanes: $lanes:literal, $zero:ident, $load:ident,
     $store:ident, $fma:ident, $put:ident) => {
        /// # Safety
        /// `X` rows of x and as many of w as a tile is wide, of the piece's length, must be there; room for partial
        /// sums, if the piece is not all; the target must have the first `width` columns of the tile, and nobody else
        /// may have them. The machine must have the instructions.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name<const X: usize>(
            x: Start,
            w: Start,
            piece: Piece,
            width: usize,
            target: &Target,
        ) {
            let mut sums = [[$zero(); $wide]; X];
            if !piece.is_first {
                for (i, sum) in sums.as_flattened_mut().iter_mut().enumerate() {
                    // SAFETY: the room has a register for each sum.
                    *sum = unsafe { $load(piece.sums.add(i * $lanes)) };
                }
            }
            let whole = piece.len - piece.len % $lanes;
            let mut at = 0;
            while at < whole {
                let mut ws = [$zero(); $wide];
                for (j, to) in ws.iter_mut().enumerate() {
                    // SAFETY: `at + lanes ≤ len`, so this is inside of the row.
                    *to = unsafe { $load(w.at.add(j * w.stride + at)) };
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let x = unsafe { $load(x.at.add(i * x.stride + at)) };
                    for (sum, w) in sums.iter_mut().zip(&ws) {
                        *sum = $fma(x, *w, *sum);
                    }
                }
                at += $lanes;
            }
            if !piece.is_last {
                for (i, sum) in sums.as_flattened().iter().enumerate() {
                    // SAFETY: the room has a register for each sum.
                    unsafe { $store(piece.sums.add(i * $lanes), *sum) };
                }
                return;
            }
            let whole_tile = width == $wide && whole == piece.len && target.is_plain();
            // SAFETY: the tile is whole, and the target has it, by the caller.
            if whole_tile && unsafe { $put(&sums, target) } {
                return;
            }
            for (i, sums) in $sums(&sums).iter().enumerate() {
                for (j, sum) in sums[..width].iter().enumerate() {
                    let mut sum = *sum;
                    for at in whole..piece.len {
                        // SAFETY: `at < len`.
                        sum += unsafe { *x.at.add(i * x.stride + at) * *w.at.add(j * w.stride + at) };
                    }
                    // SAFETY: the caller's.
                    unsafe { target.put(i, j, sum) };
                }
            }
        }
    };
}

/// Sums of a tile of four rows, a row in each quarter of the registers: columns 0 to 3, and columns 4 and 5 twice.
///
/// Added up in the order of [`fold_512`](super::x86::fold_512) and [`sums_of`]: eight apart, four, two, one.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
#[inline]
fn totals_512<const X: usize>(sums: &[[__m512; 6]; X]) -> [__m512; 2] {
    let of = |row: usize, column: usize| if row < X { sums[row][column] } else { _mm512_setzero_ps() };
    let mut columns = [_mm512_setzero_ps(); 6];
    for (j, to) in columns.iter_mut().enumerate() {
        let [a, b, c, d] = [of(0, j), of(1, j), of(2, j), of(3, j)];
        let eight =
            |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let (ab, cd) = (eight(a, b), eight(c, d));
        *to = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
    }
    let two = |a, b| _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b));
    let one = |a, b| _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b));
    let [c0, c1, c2, c3, c4, c5] = columns;
    let last = two(c4, c5);
    [one(two(c0, c1), two(c2, c3)), one(last, last)]
}

/// A tile's sums, by rows. (With AVX512-VL: without it halves of registers 16 to 31 have no names, and the compiler
/// keeps a tile's sums in memory rather than there.)
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
#[inline]
fn sums_512<const X: usize>(sums: &[[__m512; 6]; X]) -> [[f32; 6]; X] {
    let (mut four, mut two) = ([0.0; 16], [0.0; 16]);
    let totals = totals_512(sums);
    // SAFETY: the arrays have room for 16 numbers.
    unsafe {
        _mm512_storeu_ps(four.as_mut_ptr(), totals[0]);
        _mm512_storeu_ps(two.as_mut_ptr(), totals[1]);
    }
    std::array::from_fn(|i| {
        let (four, two) = (&four[4 * i..], &two[4 * i..]);
        [four[0], four[1], four[2], four[3], two[0], two[1]]
    })
}

/// Puts a whole tile in its place.
///
/// # Safety
/// The target has the tile, and nobody else has it.
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
#[inline]
unsafe fn put_512<const X: usize>(sums: &[[__m512; 6]; X], target: &Target) -> bool {
    let [four, two] = totals_512(sums);
    let fours = [
        _mm512_castps512_ps128(four),
        _mm512_extractf32x4_ps::<1>(four),
        _mm512_extractf32x4_ps::<2>(four),
        _mm512_extractf32x4_ps::<3>(four),
    ];
    let twos = [
        _mm512_castps512_ps128(two),
        _mm512_extractf32x4_ps::<1>(two),
        _mm512_extractf32x4_ps::<2>(two),
        _mm512_extractf32x4_ps::<3>(two),
    ];
    for (i, (four, two)) in fours.into_iter().zip(twos).enumerate().take(X) {
        // SAFETY: the caller's: six numbers of a row.
        unsafe {
            let place = target.start.add(i * target.stride);
            _mm_storeu_ps(place, four);
            _mm_store_sd(place.add(4).cast(), _mm_castps_pd(two));
        }
    }
    true
}

/// A tile's sums, by rows.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn sums_256<const X: usize>(sums: &[[__m256; 3]; X]) -> [[f32; 3]; X] {
    let mut rows = [[0.0; 3]; X];
    for (row, [a, b, c]) in rows.iter_mut().zip(sums) {
        let totals = sums_of([fold_256(*a), fold_256(*b), fold_256(*c), _mm_setzero_ps()]);
        row.copy_from_slice(&totals[..3]);
    }
    rows
}

/// Says that the tile is not put in its place: of a few numbers it gains nothing.
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn put_256<const X: usize>(_sums: &[[__m256; 3]; X], _target: &Target) -> bool {
    false
}

tile!(
    tile_512, sums_512, "avx512f,avx512vl,avx2,fma", wide: 6, lanes: 16, _mm512_setzero_ps, _mm512_loadu_ps,
    _mm512_storeu_ps, _mm512_fmadd_ps, put_512
);
tile!(
    tile_256, sums_256, "avx2,fma", wide: 3, lanes: 8, _mm256_setzero_ps, _mm256_loadu_ps,
    _mm256_storeu_ps, _mm256_fmadd_ps, put_256
);
