//! What a model is taught: the instruction, the columns, which rows are fit to learn from, how an
//! answer is judged, and what it may look like.
//!
//! A [`Task`] goes with the rows, from [`load_dataset`](crate::data::load_dataset) to the model card;
//! text to emoji is the default. Another one is a value:
//!
//! ```
//! use emoji_lab::prelude::*;
//!
//! let moods = Task {
//!     description: "name the mood of a text".into(),
//!     answer_column: "mood".into(),
//!     ..Task::one_of("Say the mood of this text in one word: ", ["joy", "sadness", "anger"])
//! };
//! assert_eq!(moods.prompt("what a day!")[0], Message::system("Say the mood of this text in one word: "));
//! ```

mod constraint;
mod emoji;
mod emoji_agreement;
mod emoji_judge;
mod filter;
mod judge;
mod one_of;
mod tree;

use std::sync::Arc;

pub use constraint::{Constraint, Words};
pub use emoji::{EmojiFilter, emoji_list, is_every_character_emoji, purely_emoji};
pub use emoji_judge::{EmojiJudge, emoji_f1};
pub use filter::{AnswerFilter, AnyAnswer, DropReason};
pub(crate) use judge::check as check_judge;
pub use judge::{ExactMatch, Judge, Measure, Unit};
pub use one_of::OneOf;
pub(crate) use tree::ROOT;

use crate::display::{Align, Table, notebook_view};
use crate::error::{Error, Result};

/// The instruction of Google's notebook, with the space at its end.
pub const SYSTEM_PROMPT: &str = "Translate this text to emoji: ";

/// What a model is taught.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name in a word: a tag of the model card.
    pub name: String,
    /// What the model does, as the end of "fine-tuned to …".
    pub description: String,
    /// The instruction before every text. A model is asked with the very words it was trained on.
    pub system_prompt: String,
    /// The column with the texts.
    pub text_column: String,
    /// The column with the answers.
    pub answer_column: String,
    /// Which rows are fit to learn from, by their answers.
    pub filter: Arc<dyn AnswerFilter>,
    /// What answers are judged by.
    pub judge: Arc<dyn Judge>,
    /// What answers can be held to as they are generated, if there is such a thing: generation keeps to
    /// it where its settings have it
    /// ([`GenerationConfig::constraint`](crate::model::GenerationConfig::constraint)).
    pub constraint: Option<Constraint>,
    /// A text to ask, for the card's example of use.
    pub example: String,
}

impl Task {
    /// Text to emoji, as in Google's notebook: columns `text` and `emoji`, rows whose answer is emoji
    /// alone ([`EmojiFilter::PurelyEmoji`]), judged by emoji F1 ([`EmojiJudge`]); answers can be held to
    /// emoji ([`Constraint::emoji`]).
    pub fn emoji() -> Self {
        Self {
            name: "emoji".into(),
            description: "translate text into emoji".into(),
            system_prompt: SYSTEM_PROMPT.into(),
            text_column: "text".into(),
            answer_column: "emoji".into(),
            filter: Arc::new(EmojiFilter::PurelyEmoji),
            judge: Arc::new(EmojiJudge),
            constraint: Some(Constraint::emoji()),
            example: "let's go to the beach".into(),
        }
    }

    /// Text to one of some labels: columns `text` and `label`, rows whose answer is one of them, judged
    /// by accuracy ([`OneOf`]); answers can be held to the labels.
    pub fn one_of<S: Into<String>>(
        system_prompt: impl Into<String>,
        labels: impl IntoIterator<Item = S>,
    ) -> Self {
        let labels = OneOf::new(labels);
        Self {
            name: "classification".into(),
            description: format!("answer a text with one of {labels}"),
            system_prompt: system_prompt.into(),
            answer_column: "label".into(),
            filter: Arc::new(labels.clone()),
            constraint: Some(Constraint::one_of(labels.labels())),
            judge: Arc::new(labels),
            ..Self::emoji()
        }
    }

    /// Text to any text: columns `text` and `answer`, every row that has both, judged by whether the
    /// answer is the row's ([`ExactMatch`]).
    pub fn text(system_prompt: impl Into<String>) -> Self {
        Self {
            name: "text-to-text".into(),
            description: "answer texts".into(),
            system_prompt: system_prompt.into(),
            answer_column: "answer".into(),
            filter: Arc::new(AnyAnswer),
            judge: Arc::new(ExactMatch),
            constraint: None,
            ..Self::emoji()
        }
    }

    /// The same task with another filter.
    #[must_use]
    pub fn keeping(self, filter: impl AnswerFilter + 'static) -> Self {
        Self { filter: Arc::new(filter), ..self }
    }

    /// # Errors
    /// [`Error::Setting`] that names the field which cannot work.
    pub fn validate(&self) -> Result<()> {
        for (name, value) in [("text_column", &self.text_column), ("answer_column", &self.answer_column)] {
            if value.trim().is_empty() {
                return Err(Error::setting(name, format!("{value:?}"), "it needs a name"));
            }
        }
        check_judge(&*self.judge)?;
        self.constraint.as_ref().map_or(Ok(()), Constraint::validate)
    }
}

impl Default for Task {
    fn default() -> Self {
        Self::emoji()
    }
}

impl From<&Task> for Task {
    fn from(task: &Task) -> Self {
        task.clone()
    }
}

impl From<EmojiFilter> for Task {
    /// Text to emoji, with this filter.
    fn from(filter: EmojiFilter) -> Self {
        Self::emoji().keeping(filter)
    }
}

impl PartialEq for Task {
    /// Filters and judges are equal if `Debug` shows them equal.
    fn eq(&self, other: &Self) -> bool {
        let texts = |task: &Self| {
            [
                task.name.clone(),
                task.description.clone(),
                task.system_prompt.clone(),
                task.text_column.clone(),
                task.answer_column.clone(),
                task.example.clone(),
                format!("{:?}", task.filter),
                format!("{:?}", task.judge),
            ]
        };
        texts(self) == texts(other) && self.constraint == other.constraint
    }
}

impl Eq for Task {}

impl Task {
    fn table(&self) -> Table {
        let measures: Vec<&str> = self.judge.measures().iter().map(|measure| measure.label).collect();
        let answers = self.constraint.as_ref().map(|to| ["Can be held to".to_string(), to.to_string()]);
        let table = Table::new(format!("To {}", self.description))
            .column("", Align::Left)
            .column("", Align::Left)
            .row(["System prompt".to_string(), format!("{:?}", self.system_prompt)])
            .row(["Columns".to_string(), format!("{} → {}", self.text_column, self.answer_column)])
            .row(["Rows kept".to_string(), self.filter.name()])
            .row(["Judged by".to_string(), measures.join(", ")]);
        answers.into_iter().fold(table, |table, cells| table.row(cells))
    }

    fn to_text(&self) -> String {
        self.table().to_text()
    }

    fn to_html(&self) -> String {
        self.table().to_html()
    }
}

notebook_view!(Task);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emoji_is_the_default() {
        let task = Task::default();
        assert_eq!(task, Task::emoji());
        assert_eq!(task, Task::from(EmojiFilter::PurelyEmoji));
        assert_ne!(task, EmojiFilter::None.into());
        assert_eq!(task.system_prompt, SYSTEM_PROMPT);
        task.validate().unwrap();
    }

    #[test]
    fn it_shows_what_it_is() {
        let moods = Task::one_of("Mood: ", ["joy", "fear"]);
        moods.validate().unwrap();
        let text = moods.to_string();
        for part in ["answer a text with one of joy, fear", "\"Mood: \"", "text → label", "accuracy"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains("Can be held to"), "{text}");
        assert_ne!(moods, Task::one_of("Mood: ", ["joy", "anger"]));
        assert_ne!(moods, Task { constraint: None, ..moods.clone() });
    }

    #[test]
    fn fields_that_cannot_work_are_named() {
        let error = Task { answer_column: " ".into(), ..Task::emoji() }.validate().unwrap_err().to_string();
        assert!(error.starts_with("setting answer_column = "), "{error}");
        let none = Task::one_of("x", Vec::<String>::new()).validate().unwrap_err().to_string();
        assert!(none.starts_with("setting judge = "), "{none}");
    }
}
