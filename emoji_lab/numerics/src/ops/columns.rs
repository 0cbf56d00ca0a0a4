//! Columns of a row-major matrix, which several threads fill side by side.

use std::marker::PhantomData;
use std::ops::Range;

/// Some columns of a row-major matrix that lie side by side, to be changed.
#[derive(Debug)]
pub struct Columns<'a> {
    start: *mut f32,
    /// Numbers from a row to the next.
    stride: usize,
    rows: usize,
    width: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: it is as good as a mutable slice of these columns, of numbers that can be sent.
unsafe impl Send for Columns<'_> {}
// SAFETY: shared, it gives nothing to be changed but by what is unsafe.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// All columns of `matrix`, whose rows have `stride` numbers.
    pub fn of(matrix: &'a mut [f32], stride: usize) -> Self {
        let rows = matrix.len() / stride.max(1);
        assert_eq!(matrix.len(), rows * stride, "a matrix of whole rows");
        Self { start: matrix.as_mut_ptr(), stride, rows, width: stride, matrix: PhantomData }
    }

    /// The columns in `range` of these.
    ///
    /// # Safety
    /// Nobody may use the same columns of the matrix as long as these are there.
    pub unsafe fn part(&self, range: Range<usize>) -> Columns<'a> {
        assert!(range.start <= range.end && range.end <= self.width, "columns of the matrix");
        // (Wrapping: a matrix without rows has no place for its columns either.)
        Self { start: self.start.wrapping_add(range.start), width: range.len(), ..*self }
    }

    /// The first `width` of these columns, and the others.
    pub fn split_at(self, width: usize) -> (Columns<'a>, Columns<'a>) {
        // SAFETY: no column is in both, and these are given away.
        unsafe { (self.part(0..width), self.part(width..self.width)) }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns these are.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Numbers from a row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The first number of the first row.
    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.start
    }

    /// These columns of a row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "a row of the matrix");
        // SAFETY: the row is inside of the matrix, and nobody else has these columns.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_columns_they_say() {
        let mut matrix = vec![0.0; 15];
        let all = Columns::of(&mut matrix, 5);
        assert_eq!((all.rows(), all.width(), all.stride()), (3, 5, 5));
        let (mut left, mut right) = all.split_at(2);
        for row in 0..3 {
            left.row(row).fill(1.0 + row as f32);
            right.row(row).copy_from_slice(&[7.0, 8.0, 9.0]);
        }
        // SAFETY: the others are no longer used.
        assert_eq!(unsafe { right.part(1..1) }.width(), 0);
        assert_eq!(matrix[..10], [1.0, 1.0, 7.0, 8.0, 9.0, 2.0, 2.0, 7.0, 8.0, 9.0]);
        assert_eq!(Columns::of(&mut [], 4).rows(), 0);
    }
}
