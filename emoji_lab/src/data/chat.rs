//! Rows in conversational form: system prompt, user text, assistant's emoji.

use serde::{Deserialize, Serialize};

/// Who says a [`Message`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The standing instruction.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// One training example: the messages in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, oldest first.
    pub messages: Vec<Message>,
}

/// A dataset in conversational form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatDataset {
    /// The examples, in dataset order.
    pub conversations: Vec<Conversation>,
}
