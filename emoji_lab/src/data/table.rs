//! Tables in files: which formats there are, and reading one.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use super::csv::read_csv;
use super::jsonl::read_json;
use super::options::ReadOptions;
use super::report::Counted;
use crate::error::{Error, Result};
use crate::sniff::{START, disguise};
#[cfg(not(feature = "parquet"))]
use crate::table_files::no_parquet;
use crate::table_files::{KINDS, TableFormat, no_table, other_by_content, other_by_name};

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
        path.to_str().and_then(other_by_name).filter(|_| format.is_none() && path.extension().is_some());
    if let Some(other) = by_ending.or_else(|| disguise(&start)).or_else(|| other_by_content(&start, format)) {
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
