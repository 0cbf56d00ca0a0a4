//! The settings of [`load_dataset_with`](super::load_dataset_with).

use super::columns::Columns;
use super::filter::EmojiFilter;
use super::options::{CsvOptions, FileOptions, ReadOptions};
use crate::error::{Error, Result};

/// How a dataset is loaded. The defaults are those of [`load_dataset`](super::load_dataset).
///
/// ```
/// use emoji_lab::prelude::*;
/// let config = DatasetConfig { text_column: "sentence".into(), ..Default::default() };
/// assert_eq!(config.emoji_column, "emoji");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetConfig {
    /// The column with the texts: `text`.
    pub text_column: String,
    /// The column with the emoji: `emoji`.
    pub emoji_column: String,
    /// Which rows are kept: [`EmojiFilter::PurelyEmoji`].
    pub filter: EmojiFilter,
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
        let Columns { text, emoji } = Columns::default();
        Self {
            text_column: text,
            emoji_column: emoji,
            filter: EmojiFilter::default(),
            separator: None,
            split: "train".into(),
            config_name: None,
        }
    }
}

impl DatasetConfig {
    /// Checks the settings, and puts them together with what a card says about the files.
    pub(super) fn options(&self, files: FileOptions) -> Result<ReadOptions> {
        for (name, value) in
            [("text_column", &self.text_column), ("emoji_column", &self.emoji_column), ("split", &self.split)]
        {
            if value.trim().is_empty() {
                return Err(Error::setting(name, format!("{value:?}"), "it needs a name"));
            }
        }
        let same = super::columns::matches(&self.text_column, &self.emoji_column).is_some();
        if same {
            return Err(Error::setting(
                "emoji_column",
                format!("{:?}", self.emoji_column),
                "it is the text_column, too: name two columns",
            ));
        }
        let separator = match self.separator {
            None => files.csv.separator,
            Some(c) => Some(separator(c).ok_or_else(|| {
                let help =
                    "one of , ; | or a tab ('\\t'), or another ASCII sign that is no letter, digit or quote";
                Error::setting("separator", format!("{c:?}"), help)
            })?),
        };
        Ok(ReadOptions {
            columns: Columns { text: self.text_column.clone(), emoji: self.emoji_column.clone() },
            files: FileOptions { csv: CsvOptions { separator, ..files.csv }, ..files },
        })
    }
}

/// A character that can separate fields, as a byte.
pub(crate) fn separator(c: char) -> Option<u8> {
    let byte = u8::try_from(c).ok().filter(u8::is_ascii)?;
    let fits = !byte.is_ascii_alphanumeric() && !matches!(byte, b'"' | b'\n' | b'\r' | 0);
    fits.then_some(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_named() {
        let error = |config: DatasetConfig| config.options(FileOptions::default()).unwrap_err().to_string();
        let default = DatasetConfig::default;
        assert!(error(DatasetConfig { text_column: " ".into(), ..default() }).contains("text_column"));
        assert!(error(DatasetConfig { emoji_column: "Text".into(), ..default() }).contains("emoji_column"));
        for c in ['a', '"', '\n', 'é', '7'] {
            assert!(error(DatasetConfig { separator: Some(c), ..default() }).contains("setting separator"));
        }
        let own = DatasetConfig { separator: Some(';'), ..default() };
        assert_eq!(own.options(FileOptions::default()).unwrap().files.csv.separator, Some(b';'));
    }
}
