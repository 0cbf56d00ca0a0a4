//! Products with a weight that is read as it lies in memory, for generation.
//!
//! A general product packs its operands first, which for a handful of rows costs more than the product
//! itself: a weight is then written and read again for every token. And it adds in an order that depends
//! on how many rows there are. Here every element is a dot product of two rows, and its order of sums
//! depends on their length alone: so a token's numbers are the same, bit for bit, alone and among others.
//!
//! What this is measured by is in `docs/cpu-log.md`: for one row it is as fast as memory is read, for
//! hundreds of rows about as fast as the general product, and in between several times as fast.

#[cfg(target_arch = "x86_64")]
mod int16;
#[cfg(target_arch = "x86_64")]
mod many;
mod portable;
mod stored;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;

use crate::ops::columns::Columns;
use crate::ops::team::Team;
pub use stored::Stored;

/// Multiplications that are worth a task of their own.
const TASK: usize = 1 << 17;

/// The fewest rows of `w` in a task: the rows of `x` are read anew for each task. The weight's rows that
/// a kernel takes together, whichever it is, divide it.
const FEWEST: usize = 48;

/// A multiple of this many numbers from a row to the next puts the rows' numbers into the same few places of a core's
/// first cache.
const ALIAS: usize = 512;

/// Numbers by which such rows are put further apart: a cache line.
const APART: usize = 16;

/// A weight `[outs, k]`, row-major, as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'a> {
    /// In f32.
    Dense(&'a [f32]),
    /// In a file's blocks.
    Stored(&'a Stored),
}

impl Matrix<'_> {
    /// How many rows of `k` numbers there are; `None` if they are not of that length.
    fn outs(self, k: usize) -> Option<usize> {
        match self {
            Self::Dense(w) => w.len().is_multiple_of(k).then(|| w.len() / k),
            Self::Stored(w) => (w.dims().1 == k).then(|| w.dims().0),
        }
    }
}

/// Rows of `k` numbers each.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    /// The first number of the first row.
    start: usize,
    k: usize,
    /// Numbers from a row to the next.
    stride: usize,
    /// The same as whole numbers, where somebody made them.
    #[cfg(target_arch = "x86_64")]
    rounded: Option<&'a int16::Rounded>,
}

/// Room for rows as whole numbers.
#[derive(Debug, Default)]
pub struct Whole {
    #[cfg(target_arch = "x86_64")]
    rounded: int16::Rounded,
}

impl Whole {
    /// `x` with its whole numbers, made by the threads of `team`, if one of the `weights` is multiplied with these; what
    /// several parts of a product would each make else.
    pub fn read<'a>(
        &'a mut self,
        x: Rows<'a>,
        weights: impl IntoIterator<Item = Option<&'a Stored>>,
        team: &mut Team<'_>,
    ) -> Rows<'a> {
        let kernels = Kernels::of_this_machine();
        #[cfg(target_arch = "x86_64")]
        if weights.into_iter().flatten().any(|weight| weight.takes_whole_numbers(kernels)) {
            self.rounded.read(x, team);
            return Rows { rounded: Some(&self.rounded), ..x };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (kernels, weights, team);
        x
    }
}

impl<'a> Rows<'a> {
    /// The first `k` numbers of the rows of `data`, which have `stride` each.
    pub fn new(data: &'a [f32], k: usize, stride: usize) -> Self {
        Self::of(data, 0..k, stride)
    }

    /// The numbers in `columns` of the rows of `data`, which have `stride` each.
    pub fn of(data: &'a [f32], columns: Range<usize>, stride: usize) -> Self {
        let rows = data.len() / stride.max(1);
        assert!(data.len() == rows * stride && columns.end <= stride, "a matrix of whole rows");
        Self {
            data,
            rows,
            start: columns.start,
            k: columns.len(),
            stride,
            #[cfg(target_arch = "x86_64")]
            rounded: None,
        }
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride + self.start..][..self.k]
    }

    /// Rows of `k` numbers, one behind the other, as far [`apart`] as is best; and how far that is.
    fn spread(x: &'a [f32], k: usize) -> (Cow<'a, [f32]>, usize) {
        let stride = apart(k);
        if x.len() <= k || k == stride {
            return (Cow::Borrowed(x), k);
        }
        let mut copy = vec![0.0; x.len() / k * stride];
        for (to, row) in copy.chunks_exact_mut(stride).zip(x.chunks_exact(k)) {
            to[..k].copy_from_slice(row);
        }
        (Cow::Owned(copy), stride)
    }
}

/// How far apart rows of `k` numbers are best: next to each other, but for what would be in each other's way.
pub fn apart(k: usize) -> usize {
    if k.is_multiple_of(ALIAS) { k + APART } else { k }
}

/// `out = alpha · x wᵀ`, or `out += alpha · x wᵀ` with `accumulate`; `x` is `[rows, k]`, `w`
/// `[outs, k]`, `out` `[rows, outs]`, all row-major.
pub(crate) fn row_products(out: &mut [f32], accumulate: bool, alpha: f32, x: &[f32], w: &[f32], k: usize) {
    products(out, accumulate, alpha, x, Matrix::Dense(w), k);
}

/// `row_products` with a weight as it is stored.
pub fn products(out: &mut [f32], accumulate: bool, alpha: f32, x: &[f32], w: Matrix<'_>, k: usize) {
    if out.is_empty() {
        return;
    }
    let (rows, outs) = match k {
        0 => (1, Some(out.len())),
        _ => (x.len() / k, w.outs(k)),
    };
    let outs = outs.unwrap_or_default();
    assert!(x.len() == rows * k && out.len() == rows * outs, "sizes of a product");
    if k == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    let kernels = Kernels::of_this_machine();
    let task = (TASK / (rows * k).max(1)).next_multiple_of(FEWEST).max(FEWEST);
    let target = Target { start: out.as_mut_ptr(), stride: outs, accumulate, alpha };
    let (x, stride) = Rows::spread(x, k);
    let x = Rows::new(&x, k, stride);
    #[cfg(target_arch = "x86_64")]
    let rounded = match w {
        Matrix::Stored(w) if w.takes_whole_numbers(kernels) => Some(int16::Rounded::of(x)),
        _ => None,
    };
    #[cfg(target_arch = "x86_64")]
    let x = Rows { rounded: rounded.as_ref(), ..x };
    let columns = |first: usize| {
        let last = outs.min(first + task);
        // SAFETY: the rows lie inside of `x` and `w` (checked above), and no other task has these
        // columns of `out`.
        unsafe {
            kernels.block(x, w, first..last, &target.from(first));
        }
    };
    if task >= outs {
        return columns(0);
    }
    (0..outs.div_ceil(task)).into_par_iter().for_each(|i| columns(i * task));
}

/// The products of the rows of `x` with rows `from..` of `w`, as many as `out` has columns, on the calling thread: the
/// bits of [`products`].
pub fn products_of_some(x: Rows<'_>, w: Matrix<'_>, from: usize, mut out: Columns<'_>) {
    let last = from + out.width();
    assert!(x.rows == out.rows() && w.outs(x.k).is_some_and(|outs| last <= outs), "sizes of a product");
    let target = Target { start: out.as_mut_ptr(), stride: out.stride(), accumulate: false, alpha: 1.0 };
    // SAFETY: the rows are those of `w`, and the columns are ours.
    unsafe { Kernels::of_this_machine().block(x, w, from..last, &target) };
}

/// Where sums go.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    /// Numbers from a row to the next.
    stride: usize,
    accumulate: bool,
    alpha: f32,
}

// SAFETY: tasks write to columns of their own, and read nothing of others'.
unsafe impl Sync for Target {}

impl Target {
    /// Puts a sum in its place.
    ///
    /// # Safety
    /// The place must be inside of the product, and nobody else may have it.
    #[inline(always)]
    unsafe fn put(&self, row: usize, column: usize, sum: f32) {
        // SAFETY: the caller's.
        let out = unsafe { &mut *self.start.add(row * self.stride + column) };
        *out = if self.accumulate { *out + self.alpha * sum } else { self.alpha * sum };
    }

    /// The same from another column on.
    ///
    /// # Safety
    /// The column must be inside of the product.
    unsafe fn from(&self, column: usize) -> Self {
        // SAFETY: the caller's.
        Self { start: unsafe { self.start.add(column) }, ..*self }
    }

    /// Whether sums go there as they are.
    fn is_plain(&self) -> bool {
        !self.accumulate && self.alpha == 1.0
    }
}

/// Which instructions there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kernels {
    /// Blocks with x in whole numbers; all else as with [`Self::Avx512`].
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Kernels {
    pub(super) fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl");
            return match wide {
                true if int16::is_there() => Self::Avx512Vnni,
                true => Self::Avx512,
                false => Self::Avx2,
            };
        }
        Self::Portable
    }

    /// Whether blocks are unpacked in registers, and if so, whether in the wide ones.
    #[cfg(target_arch = "x86_64")]
    fn unpacks(self) -> Option<bool> {
        (self != Self::Portable && is_x86_feature_detected!("f16c")).then_some(self.is_wide())
    }

    /// Whether registers have 512 bits.
    #[cfg(target_arch = "x86_64")]
    fn is_wide(self) -> bool {
        matches!(self, Self::Avx512Vnni | Self::Avx512)
    }

    /// The rows of `x` with rows `w_rows` of `w`; the first of these goes to the first column of `target`.
    ///
    /// # Safety
    /// The rows of `w` must be there and as long as those of `x`, the machine must have the instructions, and nobody
    /// else may have these elements of `target`.
    unsafe fn block(self, x: Rows<'_>, w: Matrix<'_>, w_rows: Range<usize>, target: &Target) {
        // SAFETY: the caller's.
        unsafe {
            match (self, w) {
                (Self::Portable, Matrix::Dense(w)) => {
                    portable::block(x, &w[w_rows.start * x.k..w_rows.end * x.k], target);
                }
                (Self::Portable, Matrix::Stored(w)) => {
                    w.in_f32(w_rows, |first, w| {
                        portable::block(x, w, &target.from(first));
                    });
                }
                #[cfg(target_arch = "x86_64")]
                (_, Matrix::Stored(w)) if w.takes_whole_numbers(self) => match x.rounded {
                    Some(x) => w.products_of_whole_numbers(x, w_rows, target),
                    None => w.products_of_whole_numbers(&int16::Rounded::of(x), w_rows, target),
                },
                #[cfg(target_arch = "x86_64")]
                (_, Matrix::Dense(w)) if x.rows == 1 => {
                    let w = &w[w_rows.start * x.k..w_rows.end * x.k];
                    match self {
                        Self::Avx512Vnni | Self::Avx512 => x86::one_row_512(x.row(0), w, target),
                        _ => x86::one_row_256(x.row(0), w, target),
                    }
                }
                #[cfg(target_arch = "x86_64")]
                (_, Matrix::Stored(stored))
                    if x.rows == 1 && target.is_plain() && stored.has_products(self) =>
                {
                    let out = std::slice::from_raw_parts_mut(target.start, w_rows.len());
                    stored.products(self, x.row(0), w_rows.start, out);
                }
                #[cfg(target_arch = "x86_64")]
                _ => many::block(self, x, w, w_rows, target),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    pub(super) fn random(len: usize, stream: u64) -> Vec<f32> {
        let mut rng = Philox::new(5, stream);
        (0..len).map(|_| rng.next_f32() - 0.5).collect()
    }

    /// Every kernel that this machine can run.
    pub(super) fn kernels() -> Vec<Kernels> {
        #[cfg(target_arch = "x86_64")]
        match Kernels::of_this_machine() {
            Kernels::Avx512Vnni => {
                return vec![Kernels::Avx512Vnni, Kernels::Avx512, Kernels::Avx2, Kernels::Portable];
            }
            Kernels::Avx512 => return vec![Kernels::Avx512, Kernels::Avx2, Kernels::Portable],
            Kernels::Avx2 => return vec![Kernels::Avx2, Kernels::Portable],
            Kernels::Portable => {}
        }
        vec![Kernels::Portable]
    }

    fn block(kernels: Kernels, x: &[f32], w: &[f32], k: usize) -> Vec<f32> {
        let (rows, outs) = (x.len() / k, w.len() / k);
        let mut out = vec![f32::NAN; rows * outs];
        let target = Target { start: out.as_mut_ptr(), stride: outs, accumulate: false, alpha: 1.0 };
        // SAFETY: all of x, w and out, and nobody else has them.
        unsafe { kernels.block(Rows::new(x, k, k), Matrix::Dense(w), 0..outs, &target) };
        out
    }

    #[test]
    fn every_kernel_gives_the_product() {
        let sizes = [
            (1, 1, 1),
            (1, 16, 5),
            (2, 48, 7),
            (3, 7, 13),
            (4, 40, 3),
            (9, 129, 17),
            (11, 1030, 6),
            (70, 64, 8),
        ];
        for kernels in kernels() {
            for (rows, k, outs) in sizes {
                let (x, w) = (random(rows * k, 1), random(outs * k, 2));
                for (at, out) in block(kernels, &x, &w, k).iter().enumerate() {
                    let (x, w) = (&x[at / outs * k..][..k], &w[at % outs * k..][..k]);
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let size: f64 = x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum();
                    let error = (f64::from(*out) - exact).abs();
                    assert!(error <= 1e-6 * size, "{kernels:?} {rows} × {k} × {outs}: {error:e}");
                }
            }
        }
    }

    #[test]
    fn with_every_kernel_a_row_is_the_same_alone_and_among_others() {
        let (k, outs) = (77, 31);
        let (x, w) = (random(23 * k, 3), random(outs * k, 4));
        for kernels in kernels() {
            let all = block(kernels, &x, &w, k);
            for (first, rows) in [(0, 1), (22, 1), (5, 2), (20, 3), (3, 4), (1, 9), (0, 22)] {
                let part = block(kernels, &x[first * k..][..rows * k], &w, k);
                assert!(
                    part == all[first * outs..][..rows * outs],
                    "{kernels:?}: {rows} rows from {first} on"
                );
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others() {
        for (k, outs) in [(640, 300), (128, 2048), (37, 29)] {
            let (x, w) = (random(131 * k, 3), random(outs * k, 4));
            let product = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / k * outs];
                row_products(&mut out, false, 1.0, x, &w, k);
                out
            };
            let all = product(&x);
            for rows in [1, 2, 3, 5, 64, 67] {
                for first in [0, 61] {
                    let part = product(&x[first * k..][..rows * k]);
                    assert!(part == all[first * outs..][..rows * outs], "{rows} rows from {first} on");
                }
            }
        }
    }

    #[test]
    fn adds_and_scales() {
        let (x, w) = ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 0.0, 2.0, 1.0, 0.0]);
        let mut out = [10.0; 6];
        row_products(&mut out, true, 2.0, &x, &w, 2);
        assert_eq!(out, [16.0, 18.0, 12.0, 24.0, 26.0, 16.0]);
        row_products(&mut out, false, 0.5, &x, &w, 2);
        assert_eq!(out, [1.5, 2.0, 0.5, 3.5, 4.0, 1.5]);
        row_products(&mut out[..2], false, 1.0, &[], &[], 0);
        assert_eq!(out[..2], [0.0, 0.0]);
        row_products(&mut [], false, 1.0, &[], &w, 2);
    }
}
