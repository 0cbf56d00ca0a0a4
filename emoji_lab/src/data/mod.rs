//! The dataset: rows of text and emoji, cleaned, split and put into chat form.

mod chat;
mod template;

pub use chat::{ChatDataset, Conversation, Message, Role};
pub use template::ChatTemplate;
