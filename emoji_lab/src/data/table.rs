//! Tables in files: which formats there are, and reading one.

use std::fs;
use std::path::Path;

use super::csv::read_csv;
use super::dataset::Row;
use super::jsonl::read_jsonl;
use crate::error::{Error, Result};

/// A format of table files, known by a name's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFormat {
    Csv,
    JsonLines,
    Parquet,
}

impl TableFormat {
    /// The formats, the better liked first: what can be looked at with any editor, and needs no feature.
    pub const LIKED: [Self; 3] = [Self::Csv, Self::JsonLines, Self::Parquet];

    /// The format that a file's name says.
    pub fn of(name: &str) -> Option<Self> {
        match Path::new(name).extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// The error for a parquet file that this build cannot read.
pub(crate) fn no_parquet(file: impl std::fmt::Display) -> Error {
    Error::dataset(
        file,
        "this is a parquet file, and emoji_lab was built without its feature `parquet`",
        "Put features = [\"parquet\"] behind the path in the notebook's `:dep emoji_lab` line and restart the \
         kernel, or save the rows as csv (Python: load_dataset(…)[\"train\"].to_csv(\"rows.csv\"))",
    )
}

/// Reads columns `text` and `emoji` of the file at `path`. `name` is what errors call it.
pub(super) fn read_rows(name: &str, path: &Path) -> Result<Vec<Row>> {
    let kind = fs::metadata(path).map_err(|e| Error::io(path, "opening the dataset", e))?;
    if kind.is_dir() {
        return Err(Error::dataset(name, "is a folder", "Give the .csv, .jsonl or .parquet file itself"));
    }
    if !kind.is_file() {
        // A pipe or a device could keep a cell waiting for ever.
        return Err(Error::dataset(name, "is not a regular file", "Give a .csv, .jsonl or .parquet file"));
    }
    let format = path.to_str().and_then(TableFormat::of).ok_or_else(|| {
        Error::dataset(
            name,
            "its name ends neither in .csv nor in .jsonl or .parquet",
            "Rename it after what it holds, or convert it to one of these",
        )
    })?;
    if kind.len() == 0 {
        return Err(Error::dataset(name, "the file is empty", "Give a file with columns `text` and `emoji`"));
    }
    let bytes = || fs::read(path).map_err(|e| Error::io(path, "reading the dataset", e));
    match format {
        TableFormat::Csv => read_csv(name, &bytes()?),
        TableFormat::JsonLines => read_jsonl(name, &bytes()?),
        #[cfg(feature = "parquet")]
        TableFormat::Parquet => super::parquet::read_parquet(name, path),
        #[cfg(not(feature = "parquet"))]
        TableFormat::Parquet => Err(no_parquet(name)),
    }
}
