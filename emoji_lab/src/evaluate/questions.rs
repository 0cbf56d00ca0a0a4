//! The rows of an evaluation, wherever they come from.

use std::sync::Arc;

use crate::data::{ChatDataset, Conversation, Dataset, Example, Message};
use crate::task::{Judge, Task};

/// What is asked, and the answer that the row has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The conversation up to the answer.
    pub messages: Vec<Message>,
    /// What the person says last: the row's text.
    pub text: String,
    /// The row's answer.
    pub expected: String,
}

/// Rows with texts and answers: a [`Dataset`], a [`ChatDataset`] as
/// [`train_test_split`](crate::data::train_test_split) gives two of, or some [`Example`]s.
pub trait Questions {
    /// A question per row, in their order.
    fn questions(&self) -> Vec<Question>;

    /// What their answers are judged by: the judge of their task, and of emoji for rows without one.
    fn judge(&self) -> Arc<dyn Judge> {
        Task::emoji().judge
    }
}

impl Questions for [Question] {
    fn questions(&self) -> Vec<Question> {
        self.to_vec()
    }
}

/// A task's rows as questions.
fn ask(task: &Task, rows: &[Example]) -> Vec<Question> {
    let question = |row: &Example| Question {
        messages: task.prompt(&row.text),
        text: row.text.clone(),
        expected: row.answer.clone(),
    };
    rows.iter().map(question).collect()
}

impl Questions for [Example] {
    /// Asked as text to emoji ([`Task::emoji`]).
    fn questions(&self) -> Vec<Question> {
        ask(&Task::emoji(), self)
    }
}

impl Questions for Dataset {
    fn questions(&self) -> Vec<Question> {
        ask(&self.task, &self.examples)
    }

    fn judge(&self) -> Arc<dyn Judge> {
        self.task.judge.clone()
    }
}

impl Questions for [Conversation] {
    /// Asked with their own words: all but the answer at the end.
    fn questions(&self) -> Vec<Question> {
        let question = |row: &Conversation| Question {
            messages: row.prompt(),
            text: row.user_text().to_string(),
            expected: row.assistant_text().to_string(),
        };
        self.iter().map(question).collect()
    }
}

impl Questions for ChatDataset {
    fn questions(&self) -> Vec<Question> {
        self.conversations.questions()
    }

    fn judge(&self) -> Arc<dyn Judge> {
        self.task.judge.clone()
    }
}

impl<T> Questions for Vec<T>
where
    [T]: Questions,
{
    fn questions(&self) -> Vec<Question> {
        self.as_slice().questions()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{format_chat, load_dataset};
    use crate::task::EmojiFilter;

    #[test]
    fn a_dataset_and_its_conversations_ask_the_same() {
        let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
        let questions = dataset.questions();
        assert_eq!(questions.len(), dataset.len());
        assert_eq!(questions[3].text, dataset.examples[3].text);
        assert_eq!(questions[3].expected, dataset.examples[3].answer);
        let chat = format_chat(&dataset);
        assert_eq!(chat.questions(), questions);
        assert_eq!(questions.questions(), questions);
        // Another system prompt is kept.
        let task = Task { system_prompt: "Say it in pictures:".into(), ..dataset.task.clone() };
        let dataset = Dataset { task, ..dataset };
        let other = format_chat(&dataset).questions();
        assert_eq!(dataset.questions(), other);
        assert_eq!((&other[0].text, &other[0].expected), (&questions[0].text, &questions[0].expected));
        assert_ne!(other[0].messages, questions[0].messages);
    }
}
