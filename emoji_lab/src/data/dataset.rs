//! Loading rows of text and emoji from a file, the Hub or this crate, and keeping the clean ones.

use std::fmt;
use std::path::{Path, PathBuf};

use super::csv::read_csv;
use super::filter::EmojiFilter;
use super::report::{CleaningReport, Counted};
use super::show::{notebook_text, shown};
use super::table::{TableFormat, read_rows};
use crate::display::plain;
use crate::error::{Error, Result};
use crate::hub::HF_DATASETS;

/// The rows that `"embedded"` loads.
const EMBEDDED: &str = include_str!("../../assets/rows.csv");

/// One row: a text and the emoji it becomes, both just as the file has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The `text` column.
    pub text: String,
    /// The `emoji` column.
    pub emoji: String,
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{text: {}, emoji: {}}}", shown(&self.text), shown(&self.emoji))
    }
}

/// The rows of a dataset that passed the filter, in the order of the file.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Where they come from: a path, a Hub id or `embedded`.
    pub source: String,
    /// The rows.
    pub examples: Vec<Example>,
    /// What was read, kept and dropped.
    pub report: CleaningReport,
}

impl Dataset {
    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there are none; never so for a loaded dataset.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Shows it in a notebook as its `Display` does.
    pub fn evcxr_display(&self) {
        notebook_text(self);
    }
}

impl fmt::Display for Dataset {
    /// The source, the number of rows, and the example the notebook shows: number 10, counted
    /// from 0, or the last one of a shorter dataset.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} examples", plain(&self.source), self.len())?;
        let index = self.len().saturating_sub(1).min(10);
        match self.examples.get(index) {
            Some(example) => write!(f, "\nHere's example {index} from the dataset: {example}"),
            None => Ok(()),
        }
    }
}

/// A row as a file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// The line it begins on, from 1; the row's number in a format without lines.
    pub line: usize,
    pub text: String,
    pub emoji: String,
}

/// Loads a dataset with columns `text` and `emoji`, and keeps the rows that `filter` keeps and
/// that have a text.
///
/// `source` is the path of a `.csv` or `.jsonl` file (UTF-8), a dataset's id on the Hugging Face
/// Hub (`owner/name` for its training split, `hf://datasets/owner/name/file.csv` for a file of it:
/// see [`download_dataset`](crate::hub::download_dataset)), or `"embedded"` for the rows that come
/// with this crate. With the crate's feature `parquet` it can be `.parquet`, too.
///
/// Values are kept as they stand. Two things differ from Python's CSV loader, both about values
/// that pandas reads as missing: a row with an empty text is dropped (Python trains on the word
/// "None" in its place), and a text such as `NA` or `null` is a text.
///
/// # Errors
/// [`Error::Dataset`] naming the file, the line and the way out if there is no such file, it is
/// not what its name says, or no row is left; [`Error::Io`] if it cannot be read; [`Error::Hub`]
/// if the Hub does not give it.
pub fn load_dataset(source: &str, filter: EmojiFilter) -> Result<Dataset> {
    let (rows, counted) = match locate(source)? {
        Source::Embedded => (read_csv(source, EMBEDDED.as_bytes())?, Counted::Lines),
        Source::File(path) => (read_rows(source, &path)?, counted_in(&path)),
        Source::Hub(id) => read_split(source, &crate::hub::download_dataset(&id)?)?,
    };
    let (examples, report) = clean(source, rows, filter, counted);
    if examples.is_empty() {
        return Err(Error::dataset(
            source,
            format!("no row is left after cleaning ({})", report.summary()),
            "Put emoji in the column `emoji`, or load with a filter that keeps more: \
             EmojiFilter::PurelyEmoji, or EmojiFilter::None for any text",
        ));
    }
    Ok(Dataset { source: source.to_owned(), examples, report })
}

/// The rows of a split's files, one after the other.
fn read_split(source: &str, files: &[PathBuf]) -> Result<(Vec<Row>, Counted)> {
    if let [one] = files {
        return Ok((read_rows(source, one)?, counted_in(one)));
    }
    let mut rows: Vec<Row> = Vec::new();
    for path in files {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        rows.extend(read_rows(&format!("{source}, {file}"), path)?);
    }
    // A line's number would not say of which file.
    rows.iter_mut().enumerate().for_each(|(i, row)| row.line = i + 1);
    Ok((rows, Counted::Rows))
}

fn counted_in(path: &Path) -> Counted {
    match path.to_str().and_then(TableFormat::of) {
        Some(TableFormat::Parquet) => Counted::Rows,
        _ => Counted::Lines,
    }
}

fn clean(
    source: &str,
    rows: Vec<Row>,
    filter: EmojiFilter,
    counted: Counted,
) -> (Vec<Example>, CleaningReport) {
    let mut report = CleaningReport { counted, ..CleaningReport::new(source, filter) };
    let mut examples = Vec::new();
    for row in rows {
        if report.judge(&row) {
            examples.push(Example { text: row.text, emoji: row.emoji });
        }
    }
    (examples, report)
}

#[derive(Debug, PartialEq)]
enum Source {
    Embedded,
    File(PathBuf),
    Hub(String),
}

fn locate(source: &str) -> Result<Source> {
    if source == "embedded" {
        return Ok(Source::Embedded);
    }
    let path = Path::new(source);
    if !source.is_empty() && path.exists() {
        return Ok(Source::File(path.to_path_buf()));
    }
    if source.starts_with(HF_DATASETS) {
        return Ok(Source::Hub(source.to_owned()));
    }
    if TableFormat::of(source).is_some() || source.starts_with(['/', '.', '~']) {
        let here = std::env::current_dir().unwrap_or_default();
        let help = match source.starts_with('~') {
            true => "Write the home folder out: `~` is the shell's".to_owned(),
            false => format!(
                "Check the path; relative ones start from {}. A file on the Hub is {HF_DATASETS}owner/name/file.csv",
                here.display()
            ),
        };
        return Err(Error::dataset(source, "there is no such file", help));
    }
    if is_hub_id(source) {
        return Ok(Source::Hub(source.to_owned()));
    }
    Err(Error::dataset(
        format!("{source:?}"),
        "is neither a file nor a dataset id of the Hugging Face Hub",
        "Give the path of a .csv or .jsonl file, an id like `owner/name`, or `embedded`",
    ))
}

/// Whether `source` has the form `owner/name` of a Hub id.
fn is_hub_id(source: &str) -> bool {
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    source.split_once('/').is_some_and(|(owner, name)| word(owner) && word(name))
}

/// The text of a file: UTF-8, without its byte order mark.
pub(super) fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str> {
    const HELP: &str = "Save the file again as UTF-8 (in a spreadsheet: \"CSV UTF-8\")";
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::dataset(name, "the file is UTF-16, not UTF-8", HELP));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let (good, bad) = bytes.split_at(e.valid_up_to());
        let line = 1 + good.iter().filter(|&&b| b == b'\n').count();
        let byte = bad.first().copied().unwrap_or_default();
        Error::dataset(format!("{name}, line {line}"), format!("not UTF-8 (byte 0x{byte:02x})"), HELP)
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// The error for a file whose columns are not the two we need.
pub(super) fn wrong_columns<'a>(at: &str, columns: impl Iterator<Item = &'a str>) -> Error {
    const MOST: usize = 12;
    let columns: Vec<&str> = columns.collect();
    let mut list: Vec<String> = columns.iter().take(MOST).map(|c| shown(c)).collect();
    if columns.len() > MOST {
        list.push(format!("and {} more", columns.len() - MOST));
    }
    let missing: Vec<&str> = ["text", "emoji"].into_iter().filter(|c| !columns.contains(c)).collect();
    let missing = match missing.as_slice() {
        [one] => format!("there is no column `{one}`"),
        _ => "there are no columns `text` and `emoji`".to_owned(),
    };
    let problem = match list.is_empty() {
        true => format!("{missing}, nor any other"),
        false => format!("{missing}; the columns are {}", list.join(", ")),
    };
    let help = match columns.as_slice() {
        [one] if one.contains([';', '\t']) => "Separate the columns with commas",
        _ => "Name two of the columns exactly `text` and `emoji`",
    };
    Error::dataset(at, problem, help)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn failure(source: &str) -> String {
        let error = load_dataset(source, EmojiFilter::PurelyEmoji).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    fn failure_of(name: &str, content: impl AsRef<[u8]>) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        let error = failure(path.to_str().unwrap());
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    }

    #[test]
    fn embedded_rows_load() {
        let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
        assert!(dataset.len() >= 40);
        assert_eq!(dataset.len(), dataset.report.rows_kept);
        assert!(dataset.to_string().contains("example 10"), "{dataset}");
    }

    #[test]
    fn what_is_not_there() {
        assert!(failure("rows.csv").contains("rows.csv: there is no such file"));
        assert!(failure("./a/b").contains("no such file"));
        assert!(failure("~/rows.csv").contains("`~` is the shell's"));
        for neither in ["", "rows", "a/b/c", "https://example.org/rows", "owner/", "-a/b", "a b/c"] {
            assert!(failure(neither).contains("neither a file nor a dataset id"), "{neither}");
        }
        for id in ["owner/name-1.0", "hf://datasets/owner/name/data/test.csv", "hf://datasets/owner/name"] {
            assert_eq!(locate(id).unwrap(), Source::Hub(id.into()));
        }
        assert!(failure("owner/name/test.csv").contains("hf://datasets/owner/name/file.csv"));
    }

    #[test]
    fn what_is_no_dataset_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(failure(folder.path().to_str().unwrap()).contains("is a folder"));
        assert!(failure("/dev/null").contains("not a regular file"));
        assert!(failure_of("rows.txt", "text,emoji\n").contains("neither in .csv nor in .jsonl or .parquet"));
        assert!(failure_of("rows.csv", "").contains("the file is empty"));
        assert!(failure_of("rows.jsonl", "").contains("the file is empty"));
    }

    #[test]
    fn bytes_that_are_not_utf8() {
        let error = failure_of("rows.csv", b"text,emoji\nok,\xf0\x9f\x8e\x89\nol\xe9,x\n");
        assert!(error.contains("rows.csv, line 3: not UTF-8 (byte 0xe9)"), "{error}");
        let error = failure_of("rows.jsonl", b"{\"text\": \"ol\xe9\"}");
        assert!(error.contains("line 1: not UTF-8"), "{error}");
        assert!(failure_of("rows.csv", b"\xff\xfet\0e\0").contains("UTF-16"));
    }

    #[test]
    fn no_row_left() {
        let error = failure_of("rows.csv", "text,emoji\nhello,world\nsun,\n,🎉\n");
        let summary = "3 rows read; 1 with text beside the emoji, first on line 2; \
                       1 with an empty emoji, first on line 3; 1 with an empty text, first on line 4";
        assert!(error.contains(summary), "{error}");
    }

    #[test]
    fn google_csv() {
        let beside = "../../shared/data/Emoji Translation Dataset - Dataset.csv";
        let path = crate::settings::setting("EMOJI_LAB_GOOGLE_CSV", beside);
        if !Path::new(&path).exists() {
            println!("skipped: no {path} (from the Gemma cookbook; EMOJI_LAB_GOOGLE_CSV gives its path)");
            return;
        }
        // What Python's datasets and emoji keep.
        for (filter, kept) in
            [(EmojiFilter::EveryCharacter, 1519), (EmojiFilter::PurelyEmoji, 2529), (EmojiFilter::None, 2529)]
        {
            let dataset = load_dataset(&path, filter).unwrap();
            assert_eq!((dataset.report.rows_read, dataset.len()), (2529, kept), "{filter:?}");
        }
        let strict = load_dataset(&path, EmojiFilter::EveryCharacter).unwrap();
        assert_eq!(strict.examples[10].text, "A supernova just exploded");
        assert_eq!(strict.examples[40].text, "Avoiding responsibilities");
    }
}
