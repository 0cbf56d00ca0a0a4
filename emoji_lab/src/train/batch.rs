//! Rows of tokens made into batches, as transformers' collator does, with the padding left out.

use crate::error::{Error, Result};
use crate::model::PackedTokens;
use crate::ops::IGNORE_INDEX;

/// A tokenised training row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Token ids, at most `max_length` of them.
    pub ids: Vec<u32>,
    /// Which of them are learned, one for each: all, or with `assistant_only_loss` those that the
    /// assistant says (transformers' `assistant_masks`).
    pub in_loss: Vec<bool>,
}

impl Row {
    /// A row of which every token is learned.
    pub fn whole(ids: Vec<u32>) -> Self {
        Self::after(ids, 0)
    }

    /// A row of which all tokens but the first `prompt_len` are learned.
    pub fn after(ids: Vec<u32>, prompt_len: usize) -> Self {
        let in_loss = (0..ids.len()).map(|t| t >= prompt_len).collect();
        Self { ids, in_loss }
    }

    /// How many tokens some earlier token is to predict.
    pub fn target_count(&self) -> usize {
        self.in_loss.iter().skip(1).filter(|learned| **learned).count()
    }

    /// One number for each token, of which rows with other tokens or other targets have others.
    pub(super) fn marks(&self) -> impl Iterator<Item = u32> {
        self.ids.iter().zip(&self.in_loss).map(|(id, learned)| id << 1 | u32::from(*learned))
    }
}

/// A batch, packed: what a padded batch of transformers' holds without its padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The tokens.
    pub tokens: PackedTokens,
    /// What each token is to predict: the next label of its row, or [`IGNORE_INDEX`].
    pub targets: Vec<i64>,
    /// How many rows went in.
    pub rows: usize,
}

impl Batch {
    /// A batch of no rows.
    pub(super) fn empty() -> Self {
        Self { tokens: PackedTokens::default(), targets: vec![], rows: 0 }
    }

    /// A batch of whole rows.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut batch = Self::empty();
        for row in rows {
            batch.tokens.push(row.ids.iter().enumerate().map(|(i, &id)| (i as u32, id)));
            for t in 0..row.ids.len() {
                let next = row.ids.get(t + 1).filter(|_| row.in_loss.get(t + 1) == Some(&true));
                batch.targets.push(next.map_or(IGNORE_INDEX, |&id| i64::from(id)));
            }
            batch.rows += 1;
        }
        batch
    }

    /// A batch from the padded form: `input_ids`, `attention_mask` and `labels`, each
    /// `[rows, columns]` row by row. Token t predicts the label of the next column.
    ///
    /// # Errors
    /// [`Error::Training`] if the lengths do not fit or an id is negative.
    pub fn from_padded(ids: &[i64], mask: &[i64], labels: &[i64], columns: usize) -> Result<Self> {
        if columns == 0
            || ids.len() != mask.len()
            || ids.len() != labels.len()
            || !ids.len().is_multiple_of(columns)
        {
            return Err(Error::training(
                format!(
                    "a batch of {} ids, {} mask values, {} labels in rows of {columns}",
                    ids.len(),
                    mask.len(),
                    labels.len()
                ),
                "All three need the same shape",
            ));
        }
        let mut batch = Self { rows: ids.len() / columns, ..Self::empty() };
        for row in 0..batch.rows {
            let at = row * columns;
            let mut kept = vec![];
            for column in 0..columns {
                if mask[at + column] == 0 {
                    continue;
                }
                let id = u32::try_from(ids[at + column]).map_err(|_| {
                    Error::training(
                        format!("token id {} in a batch", ids[at + column]),
                        "Ids are not negative",
                    )
                })?;
                kept.push((column as u32, id));
                let next = (column + 1 < columns).then(|| labels[at + column + 1]);
                batch.targets.push(next.unwrap_or(IGNORE_INDEX));
            }
            batch.tokens.push(kept);
        }
        Ok(batch)
    }

    /// How many tokens there would be with every row padded to the longest, as transformers' are.
    pub fn padded_len(&self) -> usize {
        self.rows * self.tokens.segments.iter().map(|row| row.q_len).max().unwrap_or(0)
    }

    /// How many tokens have a target.
    pub fn target_count(&self) -> usize {
        self.targets.iter().filter(|t| **t != IGNORE_INDEX).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_and_packed_are_one() -> Result<()> {
        let rows = [Row::whole(vec![2, 7, 8, 1]), Row::whole(vec![2, 9])];
        let packed = Batch::from_rows(&rows);
        let padded = Batch::from_padded(
            &[2, 7, 8, 1, 2, 9, 0, 0],
            &[1, 1, 1, 1, 1, 1, 0, 0],
            &[2, 7, 8, 1, 2, 9, -100, -100],
            4,
        )?;
        assert_eq!(packed, padded);
        assert_eq!(packed.targets, [7, 8, 1, IGNORE_INDEX, 9, IGNORE_INDEX]);
        assert_eq!((packed.target_count(), packed.rows, packed.padded_len()), (4, 2, 8));
        Ok(())
    }

    #[test]
    fn the_prompt_is_not_learned() {
        let row = Row::after(vec![2, 7, 8, 1], 2);
        let batch = Batch::from_rows([&row]);
        assert_eq!(batch.targets, [IGNORE_INDEX, 8, 1, IGNORE_INDEX]);
        assert_eq!(row.target_count(), 2);
        let row = Row { ids: vec![2, 7, 8, 1], in_loss: vec![true, true, false, true] };
        assert_eq!(Batch::from_rows([&row]).targets, [7, IGNORE_INDEX, 1, IGNORE_INDEX]);
        assert_eq!(row.target_count(), 2);
        assert_ne!(row.marks().collect::<Vec<_>>(), Row::whole(row.ids).marks().collect::<Vec<_>>());
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        assert!(Batch::from_padded(&[1, 2, 3], &[1, 1, 1], &[1, 2, 3], 2).is_err());
        assert!(Batch::from_padded(&[-1], &[1], &[1], 1).is_err());
    }
}
