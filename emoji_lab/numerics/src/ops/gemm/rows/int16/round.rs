//! Rows in whole numbers.

use std::arch::x86_64::*;

use super::super::Rows;
use super::super::stored::RUN;
use crate::ops::team::Team;

/// The largest whole number.
const LARGEST: f32 = 32_767.0;

/// Below this a run is taken for zeros: the reciprocal of less is no finite number.
const SMALLEST: f32 = 1e-30;

/// Rows of x in whole numbers of sixteen bits, with a scale for each run.
#[derive(Debug, Default)]
pub struct Rounded {
    k: usize,
    /// Of each row, of every four that follow each other the first and third, then the second and fourth: so that the
    /// even and the odd bytes of four numbers of a weight meet theirs.
    numbers: Vec<i16>,
    /// Of each row, a run's scale, and what the run adds up to.
    factors: Vec<Vec<[f32; 2]>>,
}

impl Rounded {
    /// Those of `x`, each row by a thread of `team`.
    pub fn read(&mut self, x: Rows<'_>, team: &mut Team<'_>) {
        let k = x.k;
        self.resize(x.rows, k);
        team.each_part(&mut self.numbers, k, &mut self.factors, |row, numbers, factors| {
            // SAFETY: the room is that of a row, and there is one only where the machine has the instructions.
            unsafe { round(x.row(row), numbers, factors) };
        });
    }

    /// The same on the calling thread.
    pub(in super::super) fn of(x: Rows<'_>) -> Self {
        let mut this = Self::default();
        this.resize(x.rows, x.k);
        let room = this.numbers.chunks_exact_mut(x.k).zip(&mut this.factors);
        for (row, (numbers, factors)) in room.enumerate() {
            // SAFETY: as above.
            unsafe { round(x.row(row), numbers, factors) };
        }
        this
    }

    fn resize(&mut self, rows: usize, k: usize) {
        assert!(super::is_there() && k > 0 && k.is_multiple_of(RUN), "rows of whole runs");
        self.k = k;
        self.numbers.resize(rows * k, 0);
        self.factors.resize_with(rows, Vec::new);
        self.factors.iter_mut().for_each(|factors| factors.resize(k / RUN, [0.0; 2]));
    }

    pub(in super::super) fn k(&self) -> usize {
        self.k
    }

    pub(in super::super) fn rows(&self) -> usize {
        self.factors.len()
    }

    /// A row's numbers, and its runs' scales and sums.
    pub(super) fn row(&self, row: usize) -> (&[i16], &[[f32; 2]]) {
        (&self.numbers[row * self.k..][..self.k], &self.factors[row])
    }
}

/// A row of whole runs. One that is not finite has a scale that is none.
///
/// # Safety
/// The machine must have the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2")]
unsafe fn round(x: &[f32], numbers: &mut [i16], factors: &mut [[f32; 2]]) {
    let runs = x.chunks_exact(RUN).zip(numbers.chunks_exact_mut(RUN)).zip(factors);
    for ((x, numbers), [scale, sum]) in runs {
        // SAFETY: a run is two registers.
        let halves = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(RUN / 2))] };
        // As bits, of which those of no number are larger than infinity's.
        let size = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
        let largest = _mm512_reduce_max_epi32(_mm512_max_epi32(size(halves[0]), size(halves[1])));
        let largest = f32::from_bits(largest as u32);
        *scale = largest / LARGEST;
        let by = if largest < SMALLEST || !largest.is_finite() { 0.0 } else { LARGEST / largest };
        let whole = |x| _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(by)));
        let wholes = halves.map(whole);
        let total = _mm512_reduce_add_epi32(_mm512_add_epi32(wholes[0], wholes[1]));
        *sum = *scale * total as f32;
        for (whole, to) in wholes.into_iter().zip(numbers.chunks_exact_mut(RUN / 2)) {
            let in_order = _mm512_cvtepi32_epi16(whole);
            let dealt = _mm256_shufflehi_epi16::<0xd8>(_mm256_shufflelo_epi16::<0xd8>(in_order));
            // SAFETY: half of a run is 16 numbers.
            unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), dealt) };
        }
    }
}
