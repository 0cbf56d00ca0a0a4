//! The product of one row, with AVX-512 and with AVX2; and how a register's partial sums are added up.

use std::arch::x86_64::*;

use super::Target;

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Asks for `bytes` bytes of memory from `at` on, before they are read.
#[inline(always)]
pub(super) fn fetch(at: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(LINE) {
        // SAFETY: a hint, which may point anywhere (and newer compilers know that it is safe).
        #[allow(unused_unsafe)]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line * LINE).cast())
        };
    }
}

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

/// The dot product of a row with each row of a weight, one after the other: memory comes sooner from one row after
/// another than from several at once.
macro_rules! one_row {
    ($one_row:ident, $features:literal, lanes: $lanes:literal, $zero:ident, $load:ident,
      $fma:ident, $fold:ident) => {
        /// # Safety
        /// The machine must have the instructions, and nobody else may have the target's first row, of as many
        /// columns as `w` has rows of the length of `x`.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $one_row(x: &[f32], w: &[f32], target: &Target) {
            let k = x.len();
            let whole = k - k % $lanes;
            for (column, w) in w.chunks_exact(k).enumerate() {
                let mut sums = $zero();
                for at in (0..whole).step_by($lanes) {
                    // SAFETY: `at + lanes ≤ k`, so this is inside of both rows.
                    let (x, w) = unsafe { ($load(x.as_ptr().add(at)), $load(w.as_ptr().add(at))) };
                    sums = $fma(x, w, sums);
                }
                let mut folded = [_mm_setzero_ps(); 4];
                folded[0] = $fold(sums);
                let mut sum = sums_of(folded)[0];
                for (x, w) in x[whole..].iter().zip(&w[whole..]) {
                    sum += x * w;
                }
                // SAFETY: the caller's.
                unsafe { target.put(0, column, sum) };
            }
        }
    };
}

one_row!(
    one_row_512, "avx512f,avx2,fma", lanes: 16, _mm512_setzero_ps, _mm512_loadu_ps,
    _mm512_fmadd_ps, fold_512
);
one_row!(
    one_row_256, "avx2,fma", lanes: 8, _mm256_setzero_ps, _mm256_loadu_ps,
    _mm256_fmadd_ps, fold_256
);
