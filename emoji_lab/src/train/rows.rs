//! Conversations made into rows of tokens, and rows into an epoch's batches.

use rayon::prelude::*;

use super::batch::{Batch, Row};
use super::config::SftConfig;
use crate::data::{ChatDataset, Conversation, Message, Role};
use crate::display::{TokenStrip, say, thousands};
use crate::error::{Error, Result};
use crate::model::Tokenizer;
use crate::ops::IGNORE_INDEX;
use crate::rng::Philox;
use crate::rng::streams;

/// Tokenises a dataset through the model's chat template, as TRL does with `messages`: the whole
/// conversation, cut to `max_length` tokens. Says how many rows are cut, if any.
///
/// # Errors
/// [`Error::Dataset`] that names the rows which leave nothing to learn, or the one that the template
/// refuses.
pub(super) fn tokenize(
    dataset: &ChatDataset,
    name: &str,
    tokenizer: &Tokenizer,
    args: &SftConfig,
) -> Result<Vec<Row>> {
    let (rows, cut) = tokenize_quietly(dataset, name, tokenizer, args)?;
    if let Some(line) = cut.line(name, rows.len(), args.max_length) {
        say(line);
    }
    Ok(rows)
}

/// What `max_length` cuts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Truncation {
    /// Rows that lose tokens.
    rows: usize,
    /// Those of them that lose every token of their answers.
    answers: usize,
}

impl Truncation {
    fn line(self, name: &str, rows: usize, max_length: usize) -> Option<String> {
        if self.rows == 0 {
            return None;
        }
        let verb = if self.rows == 1 { ("is", "is") } else { ("are", "are") };
        let mut line = format!(
            "{} of {} rows {name} {} longer than max_length = {max_length} and {} cut",
            thousands(self.rows as u64),
            thousands(rows as u64),
            verb.0,
            verb.1
        );
        match self.answers {
            0 => {}
            1 => line += "; 1 of them loses its whole answer",
            lost => line += &format!("; {} of them lose their whole answer", thousands(lost as u64)),
        }
        Some(line)
    }
}

/// Why a row leaves nothing to learn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nothing {
    /// No message of the assistant's, or none with text.
    NoAnswer,
    /// The template marks no token of the answers.
    Unmarked,
    /// `max_length` cuts all that would be learned; it would have to be so much at least.
    CutAway(usize),
    /// The template makes fewer than two tokens of it.
    Short,
}

impl Nothing {
    fn explained(self) -> (&'static str, String) {
        match self {
            Self::NoAnswer => (
                "no answer of the assistant's, and assistant_only_loss learns nothing else",
                "Give the row an answer, drop it, or set assistant_only_loss: false".into(),
            ),
            Self::Unmarked => (
                "an answer of which the chat template marks no token",
                "Put {% generation %} around answers in the template, or set assistant_only_loss: false"
                    .into(),
            ),
            Self::CutAway(least) => (
                "no token to learn within max_length",
                format!("Raise max_length to {least} or more, or drop such rows"),
            ),
            Self::Short => {
                ("fewer than two tokens, and nothing to learn", "Drop the row, or give it text".into())
            }
        }
    }
}

fn tokenize_quietly(
    dataset: &ChatDataset,
    name: &str,
    tokenizer: &Tokenizer,
    args: &SftConfig,
) -> Result<(Vec<Row>, Truncation)> {
    if dataset.conversations.is_empty() {
        return Err(Error::dataset(
            name,
            "there are no rows",
            "Give train_test_split more rows, or another test_size",
        ));
    }
    let made: Vec<Result<Made>> =
        dataset.conversations.par_iter().map(|conversation| row(conversation, tokenizer, args)).collect();
    let (mut rows, mut cut, mut nothing) = (vec![], Truncation::default(), vec![]);
    for (i, made) in made.into_iter().enumerate() {
        match made.map_err(|error| in_row(name, i, error))? {
            Made::Row { row, cut: is_cut, loses_answer } => {
                cut.rows += usize::from(is_cut);
                cut.answers += usize::from(loses_answer);
                rows.push(row);
            }
            Made::Nothing(why) => nothing.push((i, why)),
        }
    }
    match nothing.is_empty() {
        true => Ok((rows, cut)),
        false => Err(nothing_to_learn(name, dataset.len(), &nothing)),
    }
}

/// What becomes of a conversation.
enum Made {
    Row { row: Row, cut: bool, loses_answer: bool },
    Nothing(Nothing),
}

fn row(conversation: &Conversation, tokenizer: &Tokenizer, args: &SftConfig) -> Result<Made> {
    let messages = &conversation.messages;
    let mut row = match args.assistant_only_loss {
        true => {
            let answers = |m: &Message| m.role == Role::Assistant && !m.content.trim().is_empty();
            if !messages.iter().any(answers) {
                return Ok(Made::Nothing(Nothing::NoAnswer));
            }
            let (ids, in_loss) = tokenizer.encode_answers(messages)?;
            Row { ids, in_loss }
        }
        false => Row::whole(tokenizer.encode_chat(messages, false)?),
    };
    let first = row.in_loss.iter().skip(1).position(|learned| *learned).map(|at| at + 1);
    let Some(first) = first else {
        let why = if args.assistant_only_loss { Nothing::Unmarked } else { Nothing::Short };
        return Ok(Made::Nothing(why));
    };
    if first >= args.max_length {
        return Ok(Made::Nothing(Nothing::CutAway(first + 1)));
    }
    let cut = row.ids.len() > args.max_length;
    row.ids.truncate(args.max_length);
    row.in_loss.truncate(args.max_length);
    let loses_answer = cut && !args.assistant_only_loss && loses_answer(messages, tokenizer, args.max_length);
    Ok(Made::Row { row, cut, loses_answer })
}

/// Whether there is an answer, and every token of it is beyond `max_length`.
fn loses_answer(messages: &[Message], tokenizer: &Tokenizer, max_length: usize) -> bool {
    // A template that does not tell where answers are is no reason not to train on all tokens.
    let Ok((_, said)) = tokenizer.encode_answers(messages) else { return false };
    said.iter().position(|said| *said).is_some_and(|first| first >= max_length)
}

/// `error` as one of row `i`.
fn in_row(name: &str, i: usize, error: Error) -> Error {
    match error {
        Error::Model { subject, problem, help } => {
            Error::dataset(name, format!("row {i}: {subject}: {problem}"), help)
        }
        other => other,
    }
}

/// An error that names the rows with what is wrong with the first row.
fn nothing_to_learn(name: &str, rows: usize, nothing: &[(usize, Nothing)]) -> Error {
    const NAMED: usize = 5;
    let same = |why: &Nothing| std::mem::discriminant(why) == std::mem::discriminant(&nothing[0].1);
    let alike: Vec<&(usize, Nothing)> = nothing.iter().filter(|(_, why)| same(why)).collect();
    let least = alike.iter().map(|(_, why)| if let Nothing::CutAway(least) = why { *least } else { 0 }).max();
    let why = match nothing[0].1 {
        Nothing::CutAway(first) => Nothing::CutAway(least.unwrap_or(first)),
        other => other,
    };
    let (has, help) = why.explained();
    let named: Vec<String> = alike.iter().take(NAMED).map(|(i, _)| i.to_string()).collect();
    let problem = match alike.len() {
        1 => format!("row {} has {has}", named[0]),
        n => {
            let more = if n > NAMED { ", …" } else { "" };
            format!(
                "{} of {} rows have {has}: rows {}{more}",
                thousands(n as u64),
                thousands(rows as u64),
                named.join(", ")
            )
        }
    };
    Error::dataset(name, problem, help)
}

/// The tokens of one conversation as training sees them, with those marked that the loss counts.
///
/// Made by the trainer's own steps: template, tokenizer, `max_length`, `assistant_only_loss`.
///
/// # Errors
/// [`Error::Dataset`] if the conversation leaves nothing to learn, or the template refuses it.
pub fn tokens_in_training(
    conversation: &Conversation,
    tokenizer: &Tokenizer,
    args: &SftConfig,
) -> Result<TokenStrip> {
    let one = ChatDataset::new(vec![conversation.clone()]);
    let (rows, _) = tokenize_quietly(&one, "to be shown", tokenizer, args)?;
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

/// Rows in order, `size` per batch, the last one with what is left.
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
    use crate::device::Device;
    use crate::model::load_model;

    fn talk(turns: &[(Role, &str)]) -> Conversation {
        let message = |(role, content): &(Role, &str)| Message { role: *role, content: (*content).into() };
        Conversation { messages: turns.iter().map(message).collect() }
    }

    fn args(assistant_only_loss: bool, max_length: usize) -> SftConfig {
        SftConfig { assistant_only_loss, max_length, ..SftConfig::default() }
    }

    const SYSTEM: (Role, &str) = (Role::System, "Translate: ");
    const USER: (Role, &str) = (Role::User, "a king");
    const ANSWER: (Role, &str) = (Role::Assistant, "👑");

    #[test]
    fn the_shown_mask_is_the_trained_one() -> Result<()> {
        let tokenizer = load_model("embedded", &Device::Cpu)?.tokenizer;
        let marked = |conversation: &Conversation, assistant_only_loss| -> Result<String> {
            let args = args(assistant_only_loss, 256);
            let strip = tokens_in_training(conversation, &tokenizer, &args)?;
            let counted: Vec<u32> = strip.tokens.iter().filter(|t| t.in_loss).map(|t| t.id).collect();
            tokenizer.decode(&counted, false)
        };
        let one = talk(&[SYSTEM, USER, ANSWER]);
        let whole = tokenizer.apply_chat_template(&one.messages, false)?;
        assert_eq!(marked(&one, false)?, whole.strip_prefix("<bos>").unwrap());
        assert_eq!(marked(&one, true)?, "👑<end_of_turn>\n");
        let three =
            talk(&[SYSTEM, USER, ANSWER, (Role::User, "a party"), (Role::Assistant, " 🎉🎉 "), USER, ANSWER]);
        assert_eq!(marked(&three, true)?, "👑<end_of_turn>\n🎉🎉<end_of_turn>\n👑<end_of_turn>\n");
        // An answer that is followed by a question is one.
        assert_eq!(marked(&talk(&[USER, ANSWER, USER]), true)?, "👑<end_of_turn>\n");
        Ok(())
    }

    #[test]
    fn rows_without_an_answer_are_errors_that_name_them() -> Result<()> {
        let tokenizer = load_model("embedded", &Device::Cpu)?.tokenizer;
        let refused = |odd: &[(Role, &str)], args: &SftConfig| {
            let conversations = vec![talk(&[USER, ANSWER]), talk(odd)];
            tokenize(&ChatDataset::new(conversations), "for training", &tokenizer, args)
                .unwrap_err()
                .to_string()
        };
        let only = args(true, 256);
        for odd in [
            &[SYSTEM, USER][..],
            &[USER],
            &[SYSTEM],
            &[USER, (Role::Assistant, "")],
            &[USER, (Role::Assistant, " \n")],
            &[],
        ] {
            let said = refused(odd, &only);
            assert!(said.starts_with("dataset for training: row 1 has no answer"), "{said}");
            assert_eq!(said.lines().count(), 1);
        }
        for odd in [
            &[USER, ANSWER, ANSWER][..],
            &[USER, SYSTEM, ANSWER],
            &[SYSTEM, SYSTEM, USER, ANSWER],
            &[ANSWER, USER, ANSWER],
            &[USER, (Role::Tool, "5"), ANSWER],
        ] {
            for args in [&only, &args(false, 256)] {
                let said = refused(odd, args);
                assert!(said.contains("row 1: chat template") && said.contains("must alternate"), "{said}");
            }
        }
        assert!(refused(&[], &args(false, 256)).contains("row 1: chat template: there are no messages"));
        // Without the setting every token counts, answer or not.
        for fine in [talk(&[USER]), talk(&[SYSTEM, USER]), talk(&[USER, (Role::Assistant, "")])] {
            let dataset = ChatDataset::new(vec![fine]);
            assert_eq!(tokenize(&dataset, "for training", &tokenizer, &args(false, 256))?.len(), 1);
        }
        let conversations = vec![talk(&[USER]), talk(&[USER, ANSWER]), talk(&[SYSTEM, USER])];
        let said = tokenize(&ChatDataset::new(conversations), "for training", &tokenizer, &only).unwrap_err();
        assert!(said.to_string().contains("2 of 3 rows have no answer"), "{said}");
        assert!(said.to_string().contains(": rows 0, 2. Give"), "{said}");
        Ok(())
    }

    #[test]
    fn what_max_length_cuts_is_counted() -> Result<()> {
        let tokenizer = load_model("embedded", &Device::Cpu)?.tokenizer;
        let long = talk(&[USER, (Role::Assistant, "👑👑👑👑👑👑👑👑")]);
        let prompt = tokenizer.encode_chat(&long.prompt(), true)?.len();
        let late = talk(&[(Role::User, "a king a king a king"), ANSWER]);
        let late_prompt = tokenizer.encode_chat(&late.prompt(), true)?.len();
        let max_length = prompt + 2;
        assert!(late_prompt > max_length);
        let mut short = talk(&[USER]);
        let dataset = ChatDataset::new(vec![long.clone(), late, short.clone()]);
        let (rows, cut) = tokenize_quietly(&dataset, "for training", &tokenizer, &args(false, max_length))?;
        assert_eq!(cut, Truncation { rows: 2, answers: 1 });
        assert_eq!((rows[0].ids.len(), rows[0].target_count()), (max_length, max_length - 1));
        assert_eq!(
            cut.line("for training", 2276, max_length).unwrap(),
            format!(
                "2 of 2,276 rows for training are longer than max_length = {max_length} and are cut; \
                 1 of them loses its whole answer"
            )
        );
        assert_eq!(Truncation::default().line("for training", 3, 256), None);
        let one = Truncation { rows: 1, answers: 0 }.line("for evaluation", 3, 7).unwrap();
        assert_eq!(one, "1 of 3 rows for evaluation is longer than max_length = 7 and is cut");
        // Where nothing but the answer counts, a lost one is an error that says how much is needed.
        short.messages.push(Message::assistant("👑"));
        let dataset = ChatDataset::new(vec![long, dataset.conversations[1].clone(), short]);
        let said =
            tokenize(&dataset, "for training", &tokenizer, &args(true, max_length)).unwrap_err().to_string();
        assert!(said.contains("row 1 has no token to learn within max_length"), "{said}");
        assert!(said.contains(&format!("max_length to {} or more", late_prompt + 1)), "{said}");
        let rows = tokenize(&dataset, "for training", &tokenizer, &args(true, late_prompt + 1))?;
        assert_eq!(rows[1].target_count(), 1);
        Ok(())
    }
}
