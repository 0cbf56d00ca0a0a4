//! The dataset: rows of text and emoji, cleaned, split and put into chat form.

mod chat;
mod filter;
mod template;

pub use chat::{ChatDataset, Conversation, Message, Role};
pub use filter::{EmojiFilter, emoji_list, is_every_character_emoji, purely_emoji};
pub use template::ChatTemplate;
