//! Rows in conversational form: system prompt, user text, assistant's answer.

use std::fmt::{self, Write};

use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::show::notebook_text;
use crate::display::write_plain;
use crate::task::Task;

/// Who says a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The standing instruction.
    System,
    /// The person.
    User,
    /// The model; `model`, as Gemma's own template writes it, is read too.
    #[serde(alias = "model")]
    Assistant,
    /// What a tool gave back, for templates that know tools. Gemma 3's does not.
    Tool,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A standing instruction.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: Role::System, content: content.into() }
    }

    /// Words of the person.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: Role::User, content: content.into() }
    }

    /// Words of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: Role::Assistant, content: content.into() }
    }
}

/// One training example: the messages in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
}

impl Conversation {
    /// What the person says last; empty if nothing.
    pub fn user_text(&self) -> &str {
        self.last(Role::User)
    }

    /// What the model answers last; empty if nothing.
    pub fn assistant_text(&self) -> &str {
        self.last(Role::Assistant)
    }

    /// What to ask a model: the messages without the assistant's answer at the end. Earlier
    /// answers stay.
    pub fn prompt(&self) -> Vec<Message> {
        let asked = match self.messages.split_last() {
            Some((last, before)) if last.role == Role::Assistant => before,
            _ => &self.messages,
        };
        asked.to_vec()
    }

    fn last(&self, role: Role) -> &str {
        self.messages.iter().rfind(|m| m.role == role).map_or("", |m| m.content.as_str())
    }

    /// Shows it in a notebook as its `Display` does.
    pub fn evcxr_display(&self) {
        notebook_text(self);
    }
}

impl fmt::Display for Conversation {
    /// JSON, one message a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, |f| {
            f.write_str("{\"messages\": [")?;
            for (i, message) in self.messages.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                let role = serde_json::json!(message.role);
                let content = serde_json::json!(message.content);
                write!(f, "{comma}\n  {{\"role\": {role}, \"content\": {content}}}")?;
            }
            f.write_str("]}")
        })
    }
}

/// A dataset in conversational form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatDataset {
    /// The examples, in dataset order.
    pub conversations: Vec<Conversation>,
    /// What they teach.
    pub task: Task,
}

impl Task {
    /// The conversation that asks for an answer to `text`, as the model is trained on it.
    pub fn prompt(&self, text: impl Into<String>) -> Vec<Message> {
        vec![Message::system(&self.system_prompt), Message::user(text)]
    }
}

impl ChatDataset {
    /// Conversations of one's own; what they teach is taken for text to emoji unless
    /// [`task`](Self::task) says otherwise.
    pub fn new(conversations: Vec<Conversation>) -> Self {
        Self { conversations, task: Task::emoji() }
    }

    /// Other conversations of the same task.
    pub(super) fn with(&self, conversations: Vec<Conversation>) -> Self {
        Self { conversations, task: self.task.clone() }
    }

    /// How many conversations there are.
    pub fn len(&self) -> usize {
        self.conversations.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.conversations.is_empty()
    }

    /// The first `n` conversations, or all there are: for a run that is cut short.
    pub fn take(&self, n: usize) -> Self {
        self.with(self.conversations.iter().take(n).cloned().collect())
    }

    /// Shows it in a notebook as its `Display` does.
    pub fn evcxr_display(&self) {
        notebook_text(self);
    }
}

impl fmt::Display for ChatDataset {
    /// The number of examples and the one the notebook shows: number 40, counted from 0, or the
    /// last one of a shorter dataset.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} conversations", self.len())?;
        let index = self.len().saturating_sub(1).min(40);
        match self.conversations.get(index) {
            Some(conversation) => {
                write!(f, "\nHere's example {index} from the formatted dataset:\n{conversation}")
            }
            None => Ok(()),
        }
    }
}

/// Puts each row in conversational form: the task's system prompt, the text as the user's words, the
/// answer as the assistant's.
pub fn format_chat(dataset: &Dataset) -> ChatDataset {
    let conversation = |example: &super::Example| {
        let mut messages = dataset.task.prompt(&example.text);
        messages.push(Message::assistant(&example.answer));
        Conversation { messages }
    };
    ChatDataset {
        conversations: dataset.examples.iter().map(conversation).collect(),
        task: dataset.task.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::load_dataset;
    use crate::task::{EmojiFilter, SYSTEM_PROMPT};

    #[test]
    fn rows_become_conversations() {
        let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
        let chat = format_chat(&dataset);
        assert_eq!(chat.len(), dataset.len());
        for (conversation, example) in chat.conversations.iter().zip(&dataset.examples) {
            let roles: Vec<Role> = conversation.messages.iter().map(|m| m.role).collect();
            assert_eq!(roles, [Role::System, Role::User, Role::Assistant]);
            assert_eq!(conversation.user_text(), example.text);
            assert_eq!(conversation.assistant_text(), example.answer);
            let question = [Message::system(SYSTEM_PROMPT), Message::user(&example.text)];
            assert_eq!(conversation.prompt(), question);
        }
    }

    #[test]
    fn roles_as_people_write_them() {
        let read = |role: &str| serde_json::from_str::<Role>(&format!("\"{role}\""));
        for (name, role) in [
            ("system", Role::System),
            ("user", Role::User),
            ("assistant", Role::Assistant),
            ("model", Role::Assistant),
            ("tool", Role::Tool),
        ] {
            assert_eq!(read(name).unwrap(), role);
        }
        assert!(read("human").unwrap_err().to_string().contains("unknown variant `human`"));
        assert_eq!(serde_json::to_string(&Role::Assistant).unwrap(), "\"assistant\"");
    }

    #[test]
    fn shown_as_json() {
        let messages = vec![Message::user("a \"b\"\n"), Message::assistant("👨‍👩‍👧❤️")];
        let conversation = Conversation { messages };
        let text = conversation.to_string();
        assert_eq!(serde_json::from_str::<Conversation>(&text).unwrap(), conversation);
        assert!(text.contains("\n  {\"role\": \"assistant\", \"content\": \"👨‍👩‍👧❤️\"}]}"), "{text}");
        let chat = ChatDataset::new(vec![conversation; 60]);
        assert!(chat.to_string().starts_with("60 conversations\nHere's example 40 from"));
        assert_eq!(chat.take(2).len(), 2);
        assert_eq!(chat.take(0).to_string(), "0 conversations");
        let empty = Conversation { messages: vec![] };
        assert_eq!((empty.user_text(), empty.assistant_text()), ("", ""));
    }
}
