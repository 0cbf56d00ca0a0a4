//! The dataset: rows of text and answer, cleaned, split and put into chat form.

mod chat;
mod columns;
mod config;
mod csv;
mod dataset;
mod encoding;
mod json;
mod json_rows;
mod jsonl;
mod notes;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod records;
mod report;
mod separator;
mod show;
mod source;
mod split;
mod table;
mod template;

pub use chat::{ChatDataset, Conversation, Message, Role, format_chat};
pub use config::DatasetConfig;
pub use dataset::{Dataset, Example, load_dataset, load_dataset_with};
pub use notes::{Note, Noticed};
pub use report::{CleaningReport, Counted, Dropped};
pub use split::{DatasetSplits, held_out_rows, split_at_rows, train_test_split};
pub use template::ChatTemplate;
