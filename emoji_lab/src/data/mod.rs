//! The dataset: rows of text and emoji, cleaned, split and put into chat form.

mod chat;
mod csv;
mod dataset;
mod filter;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;
mod report;
mod show;
mod split;
mod table;
mod template;

pub use chat::{ChatDataset, Conversation, Message, Role, SYSTEM_PROMPT, format_chat};
pub use dataset::{Dataset, Example, load_dataset};
pub use filter::{EmojiFilter, emoji_list, is_every_character_emoji, purely_emoji};
pub use report::{CleaningReport, Counted, DropReason, Dropped};
pub use split::{DatasetSplits, split_at_rows, train_test_split};
pub(crate) use table::{TableFormat, no_parquet};
pub use template::ChatTemplate;
