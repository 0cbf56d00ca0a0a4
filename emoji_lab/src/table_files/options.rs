//! What a dataset's card says about its files.

use encoding_rs::Encoding;

/// What a dataset's card says about its files, under the names of Python's `datasets`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FileOptions {
    /// Of CSV files.
    pub csv: CsvOptions,
    /// The member of a JSON file that holds the rows (`field`).
    pub field: Option<String>,
    /// The encoding of the text (`encoding`); UTF-8 if none.
    pub encoding: Option<&'static Encoding>,
}

/// The settings of a CSV file that pandas knows and this crate honours.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CsvOptions {
    /// What stands between two fields (`sep`, `delimiter`); found by the header if none.
    pub separator: Option<u8>,
    /// The quote (`quotechar`); none if quotes are characters like others (`quoting: 3`).
    pub quote: Option<u8>,
    /// Whether a quote inside quotes is written twice (`doublequote`).
    pub double_quote: bool,
    /// What stands before a quote inside quotes (`escapechar`).
    pub escape: Option<u8>,
    /// Which row names the columns (`header`).
    pub header: Header,
    /// The columns' names (`names`, `column_names`).
    pub names: Option<Vec<String>>,
    /// Which lines are passed over (`skiprows`).
    pub skip: Skip,
    /// The columns that there are (`usecols`); all if none.
    pub only: Option<Vec<Column>>,
    /// How many rows are read at most (`nrows`).
    pub most_rows: Option<usize>,
    /// Whether a row with a wrong number of fields is passed over (`on_bad_lines`).
    pub skip_bad_lines: bool,
}

/// Which row names the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// The first, unless there are names already (`infer`).
    Infer,
    /// The row with this number, from 0.
    Row(usize),
    /// None does.
    Absent,
}

/// Lines that are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Skip {
    /// So many at the start.
    First(usize),
    /// Those with these numbers, from 0.
    These(Vec<usize>),
}

/// A column, by what names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Column {
    Name(String),
    Place(usize),
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self {
            separator: None,
            quote: Some(b'"'),
            double_quote: true,
            escape: None,
            header: Header::Infer,
            names: None,
            skip: Skip::First(0),
            only: None,
            most_rows: None,
            skip_bad_lines: false,
        }
    }
}
