//! Sums of up to eight rows of x by the sixteen of a panel.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::Target;
use super::super::stored::{Numbers, RUN};
use super::ahead::Ahead;
use super::panel::{Panel, WIDE};
use super::round::Rounded;

/// Rows of x of a tile.
const HIGH: usize = 8;

/// `totals + even · pairs[0] + odd · pairs[1]`, where each pair of a lane is multiplied with the same two numbers.
///
/// (Written out: the compiler takes two instructions for each of these, and so twice the time.)
///
/// # Safety
/// Two pairs must be at `pairs`, and the machine must have the instructions.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
unsafe fn add_products(totals: &mut [__m512i; 2], even: __m512i, odd: __m512i, pairs: *const i16) {
    // SAFETY: it reads eight bytes at `pairs`.
    unsafe {
        asm!(
            "vpdpwssd {even_total}, {even}, dword ptr [{pairs}]{{1to16}}",
            "vpdpwssd {odd_total}, {odd}, dword ptr [{pairs} + 4]{{1to16}}",
            even_total = inout(zmm_reg) totals[0],
            odd_total = inout(zmm_reg) totals[1],
            even = in(zmm_reg) even,
            odd = in(zmm_reg) odd,
            pairs = in(reg) pairs,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}

/// All rows of `x` with the first `width` rows of a panel, while `next` is fetched from memory.
///
/// # Safety
/// The panel must be filled, and turned if there are several rows; the machine must have the instructions, and
/// nobody else may have the first `width` columns of the target.
pub(super) unsafe fn rows<F: Numbers>(
    x: &Rounded,
    panel: &Panel,
    width: usize,
    target: &Target,
    next: &[u8],
) {
    // Tiles of about the same height: one of few rows waits for each of its sums.
    let parts = x.rows().div_ceil(HIGH).max(1);
    let mut ahead = Ahead::new(next, parts * panel.runs());
    let mut first = 0;
    for part in 0..parts {
        let rows = (x.rows() - first).div_ceil(parts - part);
        // SAFETY: the caller's, and the rows are in `x`.
        unsafe {
            match rows {
                0 => {}
                1 if x.rows() == 1 => tile::<F, 1, false>(x, first, panel, width, target, &mut ahead),
                1 => tile::<F, 1, true>(x, first, panel, width, target, &mut ahead),
                2 => tile::<F, 2, true>(x, first, panel, width, target, &mut ahead),
                3 => tile::<F, 3, true>(x, first, panel, width, target, &mut ahead),
                4 => tile::<F, 4, true>(x, first, panel, width, target, &mut ahead),
                5 => tile::<F, 5, true>(x, first, panel, width, target, &mut ahead),
                6 => tile::<F, 6, true>(x, first, panel, width, target, &mut ahead),
                7 => tile::<F, 7, true>(x, first, panel, width, target, &mut ahead),
                _ => tile::<F, HIGH, true>(x, first, panel, width, target, &mut ahead),
            }
        }
        first += rows;
    }
}

/// Rows `first` and following of `x`, `X` of them; `TURNED` says whether the panel is.
///
/// # Safety
/// As for [`rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
unsafe fn tile<F: Numbers, const X: usize, const TURNED: bool>(
    x: &Rounded,
    first: usize,
    panel: &Panel,
    width: usize,
    target: &Target,
    ahead: &mut Ahead,
) {
    let xs: [(&[i16], &[[f32; 2]]); X] = std::array::from_fn(|i| x.row(first + i));
    let low_bytes = _mm512_set1_epi16(0xff);
    let zero = _mm512_set1_epi16(F::ZERO.unwrap_or(0));
    let mut sums = [_mm512_setzero_ps(); X];
    let quads_of_a_scale = RUN / 4 / F::SCALES;
    for run in 0..panel.runs() {
        ahead.fetch();
        // SAFETY: the run is in the panel and in each row of x.
        unsafe {
            let quads = if TURNED { None } else { Some(panel.quads(run)) };
            for part in 0..F::SCALES {
                let mut totals = [[_mm512_setzero_si512(); 2]; X];
                for quad in part * quads_of_a_scale..(part + 1) * quads_of_a_scale {
                    let quads = quads.as_ref().map_or_else(|| panel.turned(run, quad), |quads| quads[quad]);
                    let mut even = _mm512_and_si512(quads, low_bytes);
                    let mut odd = _mm512_srli_epi16::<8>(quads);
                    if F::ZERO.is_some() {
                        (even, odd) = (_mm512_sub_epi16(even, zero), _mm512_sub_epi16(odd, zero));
                    }
                    for (totals, (numbers, _)) in totals.iter_mut().zip(&xs) {
                        add_products(totals, even, odd, numbers.as_ptr().add(run * RUN + quad * 4));
                    }
                }
                let scales = panel.scales(run * F::SCALES + part);
                for ((sum, [even, odd]), (_, factors)) in sums.iter_mut().zip(totals).zip(&xs) {
                    let total = _mm512_add_epi32(even, odd);
                    let [scale, _] = *factors.get_unchecked(run);
                    let scales = _mm512_mul_ps(scales, _mm512_set1_ps(scale));
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scales, *sum);
                }
            }
            if F::ZERO.is_none() {
                let offsets = panel.offsets(run);
                for (sum, (_, factors)) in sums.iter_mut().zip(&xs) {
                    let [_, total] = *factors.get_unchecked(run);
                    *sum = _mm512_fmadd_ps(offsets, _mm512_set1_ps(total), *sum);
                }
            }
        }
    }
    let columns = (u32::MAX >> (32 - width.min(WIDE) as u32)) as u16;
    for (i, sum) in sums.into_iter().enumerate() {
        // SAFETY: the target has these columns of the row.
        unsafe {
            let place = target.start.add((first + i) * target.stride);
            let mut sum = _mm512_mul_ps(_mm512_set1_ps(target.alpha), sum);
            if target.accumulate {
                sum = _mm512_add_ps(_mm512_maskz_loadu_ps(columns, place), sum);
            }
            _mm512_mask_storeu_ps(place, columns, sum);
        }
    }
}
