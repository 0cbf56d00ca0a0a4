//! How a table is read: which columns, and what is said about its files.

use super::columns::Columns;
use crate::table_files::FileOptions;

/// How the rows of a file are found.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadOptions {
    /// The two columns that are read.
    pub columns: Columns,
    /// What a card, or the caller, says about the files.
    pub files: FileOptions,
}
