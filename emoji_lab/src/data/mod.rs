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
mod other_files;
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
pub(crate) use config::separator as separator_byte;
pub use dataset::{Dataset, Example, load_dataset, load_dataset_with};
pub(crate) use encoding::by_name as encoding_by_name;
pub use notes::{Note, Noticed};
pub(crate) use options::{Column, FileOptions, Header, Skip};
pub use report::{CleaningReport, Counted, Dropped};
pub use split::{DatasetSplits, split_at_rows, train_test_split};
pub(crate) use table::{KINDS, TableFormat, no_parquet, no_table};
pub use template::ChatTemplate;
