//! A table some rows of which stand elsewhere: those that are trained, where the table is not.

use candle_core::{Result, Tensor};

/// Rows that are read in place of a table's.
#[derive(Debug, Clone, Copy)]
pub struct Replaced<'a> {
    ids: &'a [u32],
    rows: &'a Tensor,
}

impl<'a> Replaced<'a> {
    /// `rows` `[ids, width]` in place of the rows `ids` of a table `[vocab, width]`.
    ///
    /// # Errors
    /// If `ids` do not ascend, or there is not a row for each.
    pub fn new(ids: &'a [u32], rows: &'a Tensor) -> Result<Self> {
        if !ids.is_sorted_by(|a, b| a < b) || rows.dims2()?.0 != ids.len() {
            candle_core::bail!("{} ids in place of a table's rows, with rows {:?}", ids.len(), rows.dims())
        }
        Ok(Self { ids, rows })
    }

    /// Which rows of the table they are, ascending.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }

    /// The rows, `[ids, width]`.
    pub fn rows(&self) -> &'a Tensor {
        self.rows
    }
}

/// The place of `id` among `ids`, which ascend.
pub fn place(ids: &[u32], id: u32) -> Option<usize> {
    ids.binary_search(&id).ok()
}

/// Writes `columns` `[rows, ids]` over the columns `ids` of `logits` `[rows, vocab]`.
pub fn put_columns(logits: &mut [f32], columns: &[f32], ids: &[u32], vocab: usize) {
    for (row, columns) in logits.chunks_exact_mut(vocab).zip(columns.chunks_exact(ids.len())) {
        for (id, value) in ids.iter().zip(columns) {
            row[*id as usize] = *value;
        }
    }
}
