//! Matrix products that add into what is there, over strided views, on all cores.

mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

use gemm::Parallelism;

pub(crate) use rows::row_products;
pub use rows::{Matrix, Rows, Stored, Whole, apart, products, products_of_some};

/// Whether this processor has products of operands in bf16.
pub fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return tiles::bf16::is_there();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Calls `f`, whose [`matmul`]s are of operands rounded to bf16 where the processor has that, with sums in f32.
pub fn in_bf16<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    #[cfg(target_arch = "x86_64")]
    return tiles::bf16::within(f);
    #[cfg(not(target_arch = "x86_64"))]
    f()
}

/// A matrix inside a slice: `rows × cols`, element `(i, j)` at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "matrix of {rows} × {cols}");
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// Some of its columns, without a copy.
    pub fn columns(self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.cols, "columns of a matrix");
        let first = (range.start * self.col_stride).min(self.data.len());
        Self { data: &self.data[first..], cols: range.len(), ..self }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// `out = alpha · a b`, or `out += alpha · a b` with `accumulate`; `out` is row-major `[a.rows, b.cols]`.
pub fn matmul(out: &mut [f32], accumulate: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) {
    assert_eq!(a.cols, b.rows, "inner sizes of a matrix product");
    assert_eq!(out.len(), a.rows * b.cols, "size of a matrix product");
    if out.is_empty() {
        return;
    }
    if a.cols == 0 {
        if !accumulate {
            out.fill(0.0);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if tiles::matmul(out, accumulate, alpha, a, b) {
        return;
    }
    // SAFETY: the three views lie inside their slices (checked above, in `Mat::new` and in `columns`; strides
    // only ever swap), `out` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            b.cols as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            // 0 stands for "as many as there are".
            Parallelism::Rayon(0),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_scales_and_transposes() {
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // [2, 3]
        let b = [1.0, 0.0, 2.0, 1.0, 0.0, 1.0]; // [2, 3], used as its transpose
        let mut out = [10.0; 4];
        matmul(&mut out, true, 2.0, Mat::new(&a, 2, 3), Mat::new(&b, 2, 3).t());
        assert_eq!(out, [10.0 + 14.0, 10.0 + 8.0, 10.0 + 32.0, 10.0 + 20.0]);
        matmul(&mut out, false, 1.0, Mat::new(&a, 2, 3), Mat::new(&b, 2, 3).t());
        assert_eq!(out, [7.0, 4.0, 16.0, 10.0]);
        let (a, b) = (Mat::new(&a, 2, 3).columns(1..3), Mat::new(&b, 2, 3).columns(1..3));
        matmul(&mut out, false, 1.0, a, b.t());
        assert_eq!(out, [6.0, 3.0, 12.0, 6.0]);
    }

    #[test]
    fn an_empty_inner_size_gives_zeros() {
        let mut out = [3.0; 2];
        matmul(&mut out, false, 1.0, Mat::new(&[], 1, 0), Mat::new(&[], 0, 2));
        assert_eq!(out, [0.0, 0.0]);
    }
}
