//! Tables in files: which formats there are, and reading one.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::csv::read_csv;
use super::jsonl::read_json;
use super::options::ReadOptions;
use super::other_files::{by_content, by_name};
use super::report::Counted;
use crate::error::{Error, Result};
use crate::sniff::{START, disguise};

/// The kinds of files, as errors list them.
pub(crate) const KINDS: &str = "a .csv, .tsv, .jsonl, .json or .parquet file";

/// A format of table files, known by a name's ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFormat {
    Csv,
    Tsv,
    JsonLines,
    Json,
    Parquet,
}

impl TableFormat {
    /// The formats, the better liked first: what can be looked at with any editor, and needs no feature.
    pub const LIKED: [Self; 5] = [Self::Csv, Self::Tsv, Self::JsonLines, Self::Json, Self::Parquet];

    /// The format that a file's name says.
    pub fn of(name: &str) -> Option<Self> {
        match Path::new(name).extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "csv" => Some(Self::Csv),
            "tsv" => Some(Self::Tsv),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "json" => Some(Self::Json),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// A row as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The line it begins on, from 1; the row's number in a format without lines.
    pub line: usize,
    pub text: String,
    pub answer: String,
}

/// What takes rows while a file is read, so that those nobody keeps take no memory.
pub(super) struct Intake<'a> {
    take: &'a mut dyn FnMut(Row),
    /// What the rows' numbers are.
    pub counted: Counted,
    /// Rows that the file's own settings pass over: the first one's line, and how many.
    pub bad_lines: Option<(usize, usize)>,
}

impl<'a> Intake<'a> {
    pub fn new(take: &'a mut dyn FnMut(Row)) -> Self {
        Self { take, counted: Counted::Lines, bad_lines: None }
    }

    pub fn push(&mut self, row: Row) {
        (self.take)(row);
    }

    pub fn passed_over(&mut self, line: usize) {
        self.bad_lines = Some(self.bad_lines.map_or((line, 1), |(first, count)| (first, count + 1)));
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

/// The error for a file whose name says that it is no table, or says nothing.
pub(crate) fn no_table(file: impl std::fmt::Display, name: &str) -> Error {
    if let Some(other) = by_name(name) {
        return Error::dataset(file, other.problem, other.help);
    }
    let ending = Path::new(name).extension().map(|ending| ending.to_string_lossy()).unwrap_or_default();
    let problem = format!("its name ends in .{ending}, which is no table that can be read");
    Error::dataset(file, problem, format!("Give {KINDS}: rename it after what it holds, or convert it"))
}

/// Reads the two columns of the file at `path` into `rows`. `name` is what errors call the file.
pub(super) fn read_rows(name: &str, path: &Path, options: &ReadOptions, rows: &mut Intake) -> Result<()> {
    let kind = fs::metadata(path).map_err(|e| Error::io(path, "opening the dataset", e))?;
    if !kind.is_file() {
        // A pipe or a device could keep a cell waiting for ever.
        return Err(Error::dataset(name, "is not a regular file", format!("Give {KINDS}")));
    }
    if kind.len() == 0 {
        let columns = &options.columns;
        let help = format!("Give a file with columns `{}` and `{}`", columns.text, columns.answer);
        return Err(Error::dataset(name, "the file is empty", help));
    }
    let mut start = Vec::with_capacity(START);
    let read = File::open(path).and_then(|file| file.take(START as u64).read_to_end(&mut start));
    read.map_err(|e| Error::io(path, "reading the dataset", e))?;
    let format = path.to_str().and_then(TableFormat::of);
    // An ending that says more than "an archive", as .xlsx does, goes before the content.
    let by_ending =
        path.to_str().and_then(by_name).filter(|_| format.is_none() && path.extension().is_some());
    if let Some(other) = by_ending.or_else(|| disguise(&start)).or_else(|| by_content(&start, format)) {
        return Err(Error::dataset(name, other.problem, other.help));
    }
    let format = format.ok_or_else(|| no_table(name, path.to_str().unwrap_or_default()))?;
    let bytes = || fs::read(path).map_err(|e| Error::io(path, "reading the dataset", e));
    match format {
        TableFormat::Csv => read_csv(name, &bytes()?, options, b',', rows),
        TableFormat::Tsv => read_csv(name, &bytes()?, options, b'\t', rows),
        TableFormat::JsonLines | TableFormat::Json => read_json(name, &bytes()?, options, rows),
        #[cfg(feature = "parquet")]
        TableFormat::Parquet => super::parquet::read_parquet(name, path, options, rows),
        #[cfg(not(feature = "parquet"))]
        TableFormat::Parquet => Err(no_parquet(name)),
    }
}
