//! What an answer is judged by.

use std::fmt::Debug;

use crate::error::{Error, Result};

/// How a measure's values are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// A number from 0 to 1 that may lie between: shown as 0.366.
    Score,
    /// 0 or 1, no or yes: the mean is a share, shown as 94 %.
    Share,
    /// A number of things: shown as 2.7.
    Count,
}

/// One thing that is measured in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Its name in programs and logs, as `f1`.
    pub name: &'static str,
    /// Its name in a table, as `emoji F1`.
    pub label: &'static str,
    /// How its values are to be read.
    pub unit: Unit,
}

/// Compares an answer with the one that a row has.
///
/// [`EmojiJudge`](super::EmojiJudge) is the one for emoji, [`OneOf`](super::OneOf) for labels; another
/// task brings its own:
///
/// ```
/// use emoji_lab::task::{Judge, Measure, Unit};
/// #[derive(Debug)]
/// struct SameWords;
/// impl Judge for SameWords {
///     fn measures(&self) -> Vec<Measure> {
///         vec![Measure { name: "same_words", label: "same words", unit: Unit::Share }]
///     }
///     fn judge(&self, answer: &str, expected: &str) -> Vec<f64> {
///         vec![f64::from(answer.split_whitespace().eq(expected.split_whitespace()))]
///     }
/// }
/// ```
pub trait Judge: Debug + Send + Sync {
    /// What it measures. The first is the score: what rows are sorted and models compared by, and more
    /// of it is better.
    fn measures(&self) -> Vec<Measure>;

    /// A finite value for each of [`Self::measures`], in their order.
    fn judge(&self, answer: &str, expected: &str) -> Vec<f64>;

    /// An answer put together from `answers`, if this judge can make one that may score higher against
    /// all of them, on average, than any of them does; a [`consensus`](crate::evaluate::consensus) then
    /// considers it, too. `None` where there is no such thing, as between labels.
    fn agreed(&self, answers: &[String]) -> Option<String> {
        let _ = answers;
        None
    }
}

/// Refuses a judge that measures nothing.
pub(crate) fn check(judge: &dyn Judge) -> Result<()> {
    match judge.measures().is_empty() {
        true => {
            let help = "a judge needs at least one measure, the first of which is the score";
            Err(Error::setting("judge", format!("{judge:?}"), help))
        }
        false => Ok(()),
    }
}

/// Judges by whether an answer is the row's, except for blanks around it (`exact_match`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExactMatch;

impl Judge for ExactMatch {
    fn measures(&self) -> Vec<Measure> {
        vec![Measure { name: "exact_match", label: "exact match", unit: Unit::Score }]
    }

    fn judge(&self, answer: &str, expected: &str) -> Vec<f64> {
        vec![f64::from(answer.trim() == expected.trim())]
    }
}
