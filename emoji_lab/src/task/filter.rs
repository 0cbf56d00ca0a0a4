//! Which rows are fit to learn from.

use std::fmt::Debug;

/// Why a row was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Nothing in the text.
    EmptyText,
    /// Nothing in the answer.
    EmptyAnswer,
    /// The answer is to be emoji, and holds something that is none.
    TextBesideEmoji,
    /// The answer is all emoji, but one of them takes several characters, which
    /// [`EmojiFilter::EveryCharacter`](super::EmojiFilter::EveryCharacter) does not count as emoji.
    SeveralCharacters,
    /// The columns' own names, once more.
    RepeatedHeader,
    /// What a filter of one's own says, as "an answer of more than five words".
    Other(&'static str),
}

impl DropReason {
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::EmptyText => "an empty text",
            Self::EmptyAnswer => "an empty answer",
            Self::TextBesideEmoji => "text beside the emoji",
            Self::SeveralCharacters => "an emoji of several characters",
            Self::RepeatedHeader => "the header once more",
            Self::Other(says) => says,
        }
    }
}

/// Decides by its answer whether a row is kept.
///
/// ```
/// use emoji_lab::task::{AnswerFilter, DropReason};
/// #[derive(Debug)]
/// struct Short;
/// impl AnswerFilter for Short {
///     fn reason_to_drop(&self, answer: &str) -> Option<DropReason> {
///         (answer.split_whitespace().count() > 5).then_some(DropReason::Other("a long answer"))
///     }
///     fn way_out(&self) -> String {
///         "Give answers of at most five words".into()
///     }
/// }
/// ```
pub trait AnswerFilter: Debug + Send + Sync {
    /// Why a row with this answer, which is not empty, is dropped; `None` keeps it.
    fn reason_to_drop(&self, answer: &str) -> Option<DropReason>;

    /// What a report calls the filter.
    fn name(&self) -> String {
        format!("{self:?}")
    }

    /// What to do when no row passes: a sentence.
    fn way_out(&self) -> String;
}

/// Keeps every answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AnyAnswer;

impl AnswerFilter for AnyAnswer {
    fn reason_to_drop(&self, _: &str) -> Option<DropReason> {
        None
    }

    fn way_out(&self) -> String {
        "Give rows that have a text and an answer".into()
    }
}
