//! Rows of the embedding that are trained while its table is not: what PEFT calls trainable tokens.

use candle_core::Tensor;

use super::linear::Param;
use crate::error::{Error, Result};
use crate::ops::lazy::LazyTensor;
use crate::ops::replaced::Replaced;

/// Rows that stand in place of the embedding's, and so of the head's where that is the embedding.
#[derive(Debug, Clone)]
pub(crate) struct TokenRows {
    /// Which rows they are, ascending.
    pub(crate) ids: Vec<u32>,
    /// `[ids, hidden]`.
    pub(crate) rows: Param,
}

impl TokenRows {
    /// The rows `ids` of `table` `[vocab, hidden]` as it has them, each once.
    pub(crate) fn of(table: &LazyTensor, ids: &[u32]) -> Result<Self> {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let vocab = table.dims2()?.0;
        match ids.last() {
            Some(last) if (*last as usize) < vocab => {}
            last => {
                let value = last.map_or("[]".to_string(), u32::to_string);
                let help = format!("give ids of the model's {vocab} tokens, at least one");
                return Err(Error::setting("trainable_token_indices", value, help));
            }
        }
        let rows = table.rows(&ids)?;
        Ok(Self { ids, rows: Param::frozen(rows) })
    }

    /// As the ops take them.
    pub(crate) fn replaced(&self) -> Result<Replaced<'_>> {
        Ok(Replaced::new(&self.ids, &self.rows.value)?)
    }

    /// A copy of `table` with the rows put in.
    pub(crate) fn put_into(&self, table: &Tensor) -> Result<Tensor> {
        put_rows(table, &self.ids, &self.rows.value)
    }
}

/// A copy of `table` `[vocab, hidden]` with `rows` `[ids, hidden]` in place of the rows `ids`.
pub(crate) fn put_rows(table: &Tensor, ids: &[u32], rows: &Tensor) -> Result<Tensor> {
    let copy = table.force_contiguous()?;
    for (at, id) in ids.iter().enumerate() {
        copy.slice_set(&rows.narrow(0, at, 1)?.contiguous()?, 0, *id as usize)?;
    }
    Ok(copy)
}
