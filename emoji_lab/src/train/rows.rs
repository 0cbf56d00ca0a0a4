//! Conversations made into rows of tokens, and rows into an epoch's batches.

use rayon::prelude::*;

use super::batch::{Batch, Row};
use super::config::SftConfig;
use super::finetune::streams;
use crate::data::{ChatDataset, Role};
use crate::error::{Error, Result};
use crate::model::Tokenizer;
use crate::rng::Philox;

/// Tokenises a dataset through the model's chat template, as TRL does with `messages`: the whole
/// conversation, cut to `max_length` tokens.
///
/// # Errors
/// [`Error::Dataset`] that names the first row which leaves nothing to learn.
pub(super) fn tokenize(
    dataset: &ChatDataset,
    name: &str,
    tokenizer: &Tokenizer,
    args: &SftConfig,
) -> Result<Vec<Row>> {
    if dataset.conversations.is_empty() {
        return Err(Error::dataset(
            name,
            "there are no rows",
            "Give train_test_split more rows, or another test_size",
        ));
    }
    let row = |(i, conversation): (usize, &crate::data::Conversation)| {
        let messages = &conversation.messages;
        let mut ids = tokenizer.encode_chat(messages, false)?;
        let prompt_len = match messages.split_last() {
            Some((last, prompt)) if args.assistant_only_loss && last.role == Role::Assistant => {
                tokenizer.encode_chat(prompt, true)?.len()
            }
            _ => 0,
        };
        ids.truncate(args.max_length);
        if ids.len() < prompt_len.max(1) + 1 {
            let problem =
                format!("row {i} has {} tokens within max_length and nothing to learn among them", ids.len());
            return Err(Error::dataset(name, problem, "Raise max_length, or drop the row"));
        }
        Ok(Row { ids, prompt_len })
    };
    dataset.conversations.par_iter().enumerate().map(row).collect()
}

/// The order in which epoch `epoch` (from 0) goes through `rows` rows: a Fisher–Yates shuffle by
/// Philox4x32-10 with the run's seed and a stream of its own for every epoch.
pub(super) fn epoch_order(rows: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..rows).collect();
    Philox::new(seed, streams::ORDER + epoch as u64).shuffle(&mut order);
    order
}

/// Rows in order, `size` a batch, the last one with what is left.
pub(super) fn batches_in_order(rows: &[Row], size: usize) -> Vec<Batch> {
    rows.chunks(size).map(Batch::from_rows).collect()
}

/// The most tokens that `size` of the rows can have together.
pub(super) fn longest_batch(rows: &[Row], size: usize) -> usize {
    let mut lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.iter().take(size).sum()
}
