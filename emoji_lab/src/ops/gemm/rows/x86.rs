//! The product with AVX-512 and with AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{MANY, Target};

/// Numbers of a cache line.
const LINE: usize = 16;

/// Rows from this length on are in memory pages of their own. The processor then sees several rows that
/// are read at once as several streams, and fetches ahead by itself; asking it to is slower.
const PAGE: usize = 1024;

/// Half of a vector added to the other half, until four sums are left.
#[target_feature(enable = "avx2,fma")]
pub(super) fn fold_256(v: __m256) -> __m128 {
    _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v))
}

#[target_feature(enable = "avx512f,avx2,fma")]
pub(super) fn fold_512(v: __m512) -> __m128 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
    fold_256(_mm256_add_ps(_mm512_castps512_ps256(v), high))
}

/// The sum of each of four vectors, `(v₀ + v₂) + (v₁ + v₃)`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sums_of(v: [__m128; 4]) -> [f32; 4] {
    let (low_01, high_01) = (_mm_unpacklo_ps(v[0], v[1]), _mm_unpackhi_ps(v[0], v[1]));
    let (low_23, high_23) = (_mm_unpacklo_ps(v[2], v[3]), _mm_unpackhi_ps(v[2], v[3]));
    let even = _mm_add_ps(_mm_movelh_ps(low_01, low_23), _mm_movelh_ps(high_01, high_23));
    let odd = _mm_add_ps(_mm_movehl_ps(low_23, low_01), _mm_movehl_ps(high_23, high_01));
    let mut out = [0.0; 4];
    // SAFETY: the array has room for four numbers.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), _mm_add_ps(even, odd)) };
    out
}

/// A tile of `X` rows of x and `W` rows of w, each pair's sum in a register of its own, and all tiles of a
/// block. How rows fall into tiles changes no sum.
macro_rules! kernel {
    ($block:ident, $tile:ident, $features:literal, lanes: $lanes:literal, together: $together:literal,
     lines per step: $lines:literal, $zero:ident, $load:ident, $fma:ident, $fold:ident) => {
        /// Asks for `FETCH` cache lines from `next` on at each step, before they are needed.
        ///
        /// # Safety
        /// `X` rows of `k` numbers from `x` on, and `W` from `w` on, must be there; `X` and `W` are up to 4.
        #[target_feature(enable = $features)]
        #[inline]
        unsafe fn $tile<const X: usize, const W: usize, const FETCH: usize>(
            x: *const f32,
            w: *const f32,
            k: usize,
            next: *const f32,
        ) -> [[f32; W]; X] {
            let mut sums = [[$zero(); W]; X];
            let whole = k - k % $lanes;
            let mut next = next;
            let mut at = 0;
            while at < whole {
                for _ in 0..FETCH {
                    // SAFETY: a hint, which may point anywhere (and newer compilers know that it is safe).
                    #[allow(unused_unsafe)]
                    unsafe {
                        _mm_prefetch::<_MM_HINT_T0>(next.cast())
                    };
                    next = next.wrapping_add(LINE);
                }
                let mut ws = [$zero(); W];
                for (j, to) in ws.iter_mut().enumerate() {
                    // SAFETY: `at + lanes ≤ k`, so this is inside of the row.
                    *to = unsafe { $load(w.add(j * k + at)) };
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let x = unsafe { $load(x.add(i * k + at)) };
                    for (sum, w) in sums.iter_mut().zip(&ws) {
                        *sum = $fma(x, *w, *sum);
                    }
                }
                at += $lanes;
            }
            let mut out = [[0.0; W]; X];
            if W == 1 {
                let mut folded = [_mm_setzero_ps(); 4];
                for (to, sums) in folded.iter_mut().zip(&sums) {
                    *to = $fold(sums[0]);
                }
                for (out, total) in out.iter_mut().zip(sums_of(folded)) {
                    out[0] = total;
                }
            } else {
                for (out, sums) in out.iter_mut().zip(&sums) {
                    let mut folded = [_mm_setzero_ps(); 4];
                    for (to, sum) in folded.iter_mut().zip(sums) {
                        *to = $fold(*sum);
                    }
                    for (out, total) in out.iter_mut().zip(sums_of(folded)) {
                        *out = total;
                    }
                }
            }
            for (i, out) in out.iter_mut().enumerate() {
                for (j, out) in out.iter_mut().enumerate() {
                    for at in whole..k {
                        // SAFETY: `at < k`.
                        *out += unsafe { *x.add(i * k + at) * *w.add(j * k + at) };
                    }
                }
            }
            out
        }

        /// # Safety
        /// As for `Kernels::block`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $block(
            x: &[f32],
            w: &[f32],
            k: usize,
            x_rows: Range<usize>,
            w_rows: Range<usize>,
            target: &Target,
        ) {
            // While rows of w that lie in the cache are multiplied, those that follow are fetched: in the
            // first tiles a line a step, or all in the one tile that there is. All rows of x after the
            // first block find them there.
            let tiles = x_rows.len() / MANY;
            let fetch = k < PAGE && x_rows.start == 0;
            let mut j = w_rows.start;
            while j < w_rows.end {
                let many = x_rows.len() >= MANY && j + $together <= w_rows.end;
                let together = if many { $together } else { 1 };
                let mut i = x_rows.start;
                while i < x_rows.end {
                    let rows = MANY.min(x_rows.end - i);
                    // SAFETY: the caller says that the rows are there and that the target is ours.
                    unsafe {
                        let (x, w) = (x.as_ptr().add(i * k), w.as_ptr().add(j * k));
                        let tile = (i - x_rows.start) / MANY;
                        let next = w.wrapping_add($together * k + tile * (k / $lanes) * LINE);
                        match (rows, many) {
                            (4, true) if fetch && tiles < $lines && tile == 0 => {
                                target.put(i, j, $tile::<4, $together, $lines>(x, w, k, next));
                            }
                            (4, true) if fetch && tiles >= $lines && tile < $lines => {
                                target.put(i, j, $tile::<4, $together, 1>(x, w, k, next));
                            }
                            (4, true) => target.put(i, j, $tile::<4, $together, 0>(x, w, k, next)),
                            (3, true) => target.put(i, j, $tile::<3, $together, 0>(x, w, k, next)),
                            (2, true) => target.put(i, j, $tile::<2, $together, 0>(x, w, k, next)),
                            (_, true) => target.put(i, j, $tile::<1, $together, 0>(x, w, k, next)),
                            (4, false) => target.put(i, j, $tile::<4, 1, 0>(x, w, k, next)),
                            (3, false) => target.put(i, j, $tile::<3, 1, 0>(x, w, k, next)),
                            (2, false) => target.put(i, j, $tile::<2, 1, 0>(x, w, k, next)),
                            (_, false) => target.put(i, j, $tile::<1, 1, 0>(x, w, k, next)),
                        }
                    }
                    i += rows;
                }
                j += together;
            }
        }
    };
}

kernel!(
    avx512_block,
    avx512_tile,
    "avx512f,avx2,fma",
    lanes: 16,
    together: 4,
    lines per step: 4,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    fold_512
);
kernel!(
    avx2_block,
    avx2_tile,
    "avx2,fma",
    lanes: 8,
    together: 3,
    lines per step: 2,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    fold_256
);
