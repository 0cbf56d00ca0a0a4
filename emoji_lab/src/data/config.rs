//! The settings of [`load_dataset_with`](super::load_dataset_with).

use super::columns::{Columns, matches};
use super::options::ReadOptions;
use crate::error::{Error, Result};
use crate::table_files::{CsvOptions, FileOptions, separator_byte};
use crate::task::Task;

/// How a dataset is loaded. The defaults are those of [`load_dataset`](super::load_dataset).
///
/// ```
/// use emoji_lab::prelude::*;
/// let config = DatasetConfig { split: "validation".into(), ..Default::default() };
/// assert_eq!(config.task, Task::emoji());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetConfig {
    /// What the rows teach: which columns are read, and which rows are kept.
    pub task: Task,
    /// What separates the fields of a CSV file. `None` takes what the dataset's card or the file's
    /// first line (`sep=;`) says, or finds comma, semicolon, tab or `|` by the header.
    pub separator: Option<char>,
    /// The split of a dataset on the Hub or in a folder: `train`.
    pub split: String,
    /// The configuration of a dataset with several (`name` in Python's `load_dataset`). `None` takes
    /// the only or the default one.
    pub config_name: Option<String>,
}

impl Default for DatasetConfig {
    fn default() -> Self {
        Self { task: Task::emoji(), separator: None, split: "train".into(), config_name: None }
    }
}

impl DatasetConfig {
    /// Checks the settings, and puts them together with what a card says about the files.
    pub(super) fn options(&self, files: FileOptions) -> Result<ReadOptions> {
        self.task.validate()?;
        if self.split.trim().is_empty() {
            return Err(Error::setting("split", format!("{:?}", self.split), "it needs a name"));
        }
        let columns = Columns::of(&self.task);
        if matches(&columns.text, &columns.answer).is_some() {
            return Err(Error::setting(
                "answer_column",
                format!("{:?}", columns.answer),
                "it is the text_column, too: name two columns",
            ));
        }
        let separator = match self.separator {
            None => files.csv.separator,
            Some(c) => Some(separator_byte(c).ok_or_else(|| {
                let help =
                    "one of , ; | or a tab ('\\t'), or another ASCII sign that is no letter, digit or quote";
                Error::setting("separator", format!("{c:?}"), help)
            })?),
        };
        Ok(ReadOptions {
            columns,
            files: FileOptions { csv: CsvOptions { separator, ..files.csv }, ..files },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let error = |config: DatasetConfig| config.options(FileOptions::default()).unwrap_err().to_string();
        let default = DatasetConfig::default;
        let task = |task: Task| DatasetConfig { task, ..default() };
        let (blank, same) = (" ".to_string(), "Text".to_string());
        assert!(error(task(Task { text_column: blank, ..Task::emoji() })).contains("text_column"));
        assert!(error(task(Task { answer_column: same, ..Task::emoji() })).contains("answer_column"));
        for c in ['a', '"', '\n', 'é', '7'] {
            assert!(error(DatasetConfig { separator: Some(c), ..default() }).contains("setting separator"));
        }
        let own = DatasetConfig { separator: Some(';'), ..default() };
        assert_eq!(own.options(FileOptions::default()).unwrap().files.csv.separator, Some(b';'));
    }
}
