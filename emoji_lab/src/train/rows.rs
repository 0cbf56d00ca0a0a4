//! Conversations made into rows of tokens, and rows into an epoch's batches.

use rayon::prelude::*;

use super::batch::{Batch, Row};
use super::config::SftConfig;
use super::finetune::streams;
use crate::data::{ChatDataset, Conversation, Role};
use crate::display::TokenStrip;
use crate::error::{Error, Result};
use crate::model::Tokenizer;
use crate::ops::IGNORE_INDEX;
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
    let row = |(i, conversation): (usize, &Conversation)| {
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

/// The tokens of one conversation as training sees them, with those marked that the loss counts.
///
/// Made by the trainer's own steps: template, tokenizer, `max_length`, `assistant_only_loss`.
///
/// # Errors
/// [`Error::Dataset`] if the conversation leaves nothing to learn, [`Error::Model`] if the template
/// refuses it.
pub fn tokens_in_training(
    conversation: &Conversation,
    tokenizer: &Tokenizer,
    args: &SftConfig,
) -> Result<TokenStrip> {
    let one = ChatDataset { conversations: vec![conversation.clone()] };
    let rows = tokenize(&one, "to be shown", tokenizer, args)?;
    let batch = Batch::from_rows(&rows);
    let ids = &batch.tokens.ids;
    let texts: Vec<String> = ids.iter().map(|id| tokenizer.token(*id).unwrap_or_default()).collect();
    // Target t is the prediction of token t + 1: the first token is predicted by nobody.
    let predicted = batch.targets.iter().map(|target| *target != IGNORE_INDEX);
    let in_loss: Vec<bool> = std::iter::once(false).chain(predicted).take(ids.len()).collect();
    Ok(TokenStrip::new(ids, &texts, &in_loss))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;
    use crate::device::Device;
    use crate::model::load_model;

    #[test]
    fn the_shown_mask_is_the_trained_one() -> Result<()> {
        let tokenizer = load_model("embedded", &Device::Cpu)?.tokenizer;
        let messages =
            vec![Message::system("Translate: "), Message::user("a king"), Message::assistant("👑")];
        let conversation = Conversation { messages };
        let marked = |assistant_only_loss| -> Result<String> {
            let args = SftConfig { assistant_only_loss, ..SftConfig::default() };
            let strip = tokens_in_training(&conversation, &tokenizer, &args)?;
            let counted: Vec<u32> = strip.tokens.iter().filter(|t| t.in_loss).map(|t| t.id).collect();
            tokenizer.decode(&counted, false)
        };
        let whole = tokenizer.apply_chat_template(&conversation.messages, false)?;
        assert_eq!(marked(false)?, whole.strip_prefix("<bos>").unwrap());
        assert_eq!(marked(true)?, "👑<end_of_turn>\n");
        Ok(())
    }
}
