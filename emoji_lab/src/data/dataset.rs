//! Loading rows of text and answer from a file, the Hub or this crate, and keeping the clean ones.

use std::fmt;
use std::path::Path;

use super::config::DatasetConfig;
use super::csv::read_csv;
use super::notes::Noticed;
use super::report::{CleaningReport, Counted};
use super::show::{notebook_text, shown};
use super::source::{Source, locate};
use super::table::{Intake, Row, read_rows};
use crate::display::plain;
use crate::error::{Error, Result};
use crate::hub::SplitFiles;
use crate::table_files::FileOptions;
use crate::task::Task;

/// The rows that `"embedded"` loads.
const EMBEDDED: &str = include_str!("../../assets/rows.csv");

/// One row: a text and the answer to it, both just as the file has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The task's text column.
    pub text: String,
    /// The task's answer column.
    pub answer: String,
}

/// The rows of a dataset that passed the filter, in the order of the file.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Where they come from: a path, a Hub id or `embedded`.
    pub source: String,
    /// What they teach.
    pub task: Task,
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
            Some(example) => {
                write!(f, "\nHere's example {index} from the dataset: {}", self.task.row(example))
            }
            None => Ok(()),
        }
    }
}

impl Task {
    /// A row under the names of its columns.
    fn row(&self, row: &Example) -> String {
        let (text, answer) = (plain(&self.text_column), plain(&self.answer_column));
        format!("{{{text}: {}, {answer}: {}}}", shown(&row.text), shown(&row.answer))
    }
}

/// Loads a task's dataset: its two columns, and of the rows those that have a text and that its filter
/// keeps. [`load_dataset_with`] has more settings.
///
/// An [`EmojiFilter`](crate::task::EmojiFilter) stands for text to emoji with that filter.
///
/// `source` is the path of a `.csv`, `.tsv`, `.jsonl` or `.json` file, of a folder with such files,
/// a dataset's id on the Hugging Face Hub (`owner/name` for its training split,
/// `hf://datasets/owner/name/file.csv` for a file of it: see
/// [`download_dataset`](crate::hub::download_dataset)), or `"embedded"` for the rows that come with
/// this crate. With the crate's feature `parquet` it can be `.parquet`, too.
///
/// A file is UTF-8, or UTF-16 with a byte order mark. Blanks, quotes and capitals in the names of
/// columns do not matter, and fields are separated by commas, semicolons, tabs or `|`, whichever
/// gives the header its columns. What a dataset's card says about its files (`configs:` with
/// `data_files`, `sep`, `names`, `encoding` and the like) holds.
///
/// Values are kept as they stand. Two things differ from Python's CSV loader, both about values
/// that pandas reads as missing: a row with an empty text is dropped (Python trains on the word
/// "None" in its place), and a text such as `NA` or `null` is a text.
///
/// # Errors
/// [`Error::Dataset`] naming the file, the line and the way out if there is no such file, it is
/// not what its name says, or no row is left; [`Error::Io`] if it cannot be read; [`Error::Hub`]
/// if the Hub does not give it.
pub fn load_dataset(source: &str, task: impl Into<Task>) -> Result<Dataset> {
    load_dataset_with(source, &DatasetConfig { task: task.into(), ..DatasetConfig::default() })
}

/// [`load_dataset`] with settings: the separator, the split.
///
/// ```no_run
/// # use emoji_lab::prelude::*;
/// let config = DatasetConfig { split: "validation".into(), ..Default::default() };
/// let dataset = load_dataset_with("owner/name", &config)?;
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// Those of [`load_dataset`], and [`Error::Setting`] for a setting that cannot work.
pub fn load_dataset_with(source: &str, config: &DatasetConfig) -> Result<Dataset> {
    let plain = config.options(FileOptions::default())?;
    let tables = |tables: SplitFiles| {
        let names = tables.paths.iter().map(|path| file_name(source, path, tables.paths.len()));
        let files: Vec<_> = names.zip(tables.paths.iter().cloned()).collect();
        Ok::<_, Error>((files, config.options(tables.options)?))
    };
    let (split, name) = (config.split.as_str(), config.config_name.as_deref());
    let (files, options) = match locate(source)? {
        Source::Embedded => (Vec::new(), plain),
        Source::File(path) => (vec![(source.to_owned(), path)], plain),
        Source::Folder(path) => tables(crate::hub::folder_tables(source, &path, split, name)?)?,
        Source::Hub(id) => tables(crate::hub::dataset_tables(&id, split, name)?)?,
    };
    let mut report = CleaningReport::new(source, config.task.clone());
    let mut examples = Vec::new();
    let (mut read, mut counted, mut bad_lines) = (0, Counted::Lines, Vec::new());
    let mut take = |mut row: Row| {
        read += 1;
        if files.len() > 1 {
            // A line's number would not say of which file.
            row.line = read;
        }
        if report.judge(&row, &options.columns) {
            examples.push(Example { text: row.text, answer: row.answer });
        }
    };
    if files.is_empty() {
        read_csv(source, EMBEDDED.as_bytes(), &options, b',', &mut Intake::new(&mut take))?;
    }
    for (name, path) in &files {
        let mut intake = Intake::new(&mut take);
        read_rows(name, path, &options, &mut intake)?;
        counted = if files.len() > 1 { Counted::Rows } else { intake.counted };
        bad_lines.extend(intake.bad_lines);
    }
    report.counted = counted;
    for (first, rows) in bad_lines {
        report.note(Noticed::BadLines, rows, first, "");
    }
    if examples.is_empty() {
        let column = &options.columns.answer;
        return Err(Error::dataset(
            source,
            format!("no row is left after cleaning ({})", report.summary()),
            format!("The answers are in the column `{column}`. {}", config.task.filter.way_out()),
        ));
    }
    Ok(Dataset { source: source.to_owned(), task: config.task.clone(), examples, report })
}

/// What errors call a file of a source with so many.
fn file_name(source: &str, path: &Path, count: usize) -> String {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if count > 1 || Path::new(source).is_dir() => format!("{source}, {name}"),
        _ => source.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::task::EmojiFilter;

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
        assert!(failure("owner/name/test.csv").contains("hf://datasets/owner/name/file.csv"));
    }

    #[test]
    fn what_is_no_dataset_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(failure(folder.path().to_str().unwrap()).contains("is a folder"));
        assert!(failure("/dev/null").contains("not a regular file"));
        assert!(failure_of("rows.txt", "text,emoji\n").contains("ends in .txt"));
        assert!(failure_of("rows", "text,emoji\n").contains("no ending"));
        assert!(failure_of("rows.dat", "x").contains("Give a .csv, .tsv, .jsonl, .json or .parquet file"));
        assert!(failure_of("rows.XLSX", "PK\x03\x04").contains("a spreadsheet"));
        assert!(failure_of("rows.csv.gz", "\x1f\u{8b}").contains("compressed"));
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 81234\n";
        for name in ["rows.csv", "rows.jsonl", "rows.json", "rows.tsv", "rows.parquet"] {
            let error = failure_of(name, pointer);
            assert!(error.contains("Git LFS pointer") && error.contains("git lfs pull"), "{error}");
            assert!(failure_of(name, "\n<!DOCTYPE html><html lang=en>").contains("is a web page"), "{name}");
        }
        assert!(failure_of("rows.csv", "{\"text\": \"a\"}").contains("holds JSON"));
        assert!(failure_of("rows.csv", "").contains("the file is empty"));
        assert!(failure_of("rows.jsonl", "").contains("the file is empty"));
    }

    #[test]
    fn bytes_that_are_not_utf8() {
        let error = failure_of("rows.csv", b"text,emoji\nok,\xf0\x9f\x8e\x89\nol\xe9,x\n");
        assert!(error.contains("rows.csv, line 3: not UTF-8 (byte 0xe9)"), "{error}");
        let error = failure_of("rows.jsonl", b"{\"text\": \"ol\xe9\"}");
        assert!(error.contains("line 1: not UTF-8"), "{error}");
        assert!(failure_of("rows.csv", b"\xff\xfet\0e").contains("UTF-16"));
        assert!(failure_of("rows.csv", b"t\0e\0x\0t\0,\0").contains("UTF-16 without a byte order mark"));
    }

    fn load(name: &str, content: impl AsRef<[u8]>, config: &DatasetConfig) -> Dataset {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        load_dataset_with(path.to_str().unwrap(), config).unwrap()
    }

    fn pairs(dataset: &Dataset) -> Vec<(&str, &str)> {
        dataset.examples.iter().map(|row| (row.text.as_str(), row.answer.as_str())).collect()
    }

    #[test]
    fn files_as_people_save_them() {
        let two = [("sun", "☀️"), ("party", "🎉")];
        let utf16: Vec<u8> =
            "\u{feff}text\temoji\r\nsun\t☀️\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (name, content, rows) in [
            ("space.csv", "text, emoji\nsun,☀️\n".as_bytes(), 1),
            ("capital.CSV", "Text,Emoji\nsun,☀️\n".as_bytes(), 1),
            ("index.csv", ",text,emoji\n0,sun,☀️\n1,party,🎉\n".as_bytes(), 2),
            ("empty-columns.csv", "text,emoji,,\nsun,☀️,,\nparty,🎉,,\n".as_bytes(), 2),
            ("semicolon.csv", "text;emoji\nsun;☀️\n".as_bytes(), 1),
            ("tab.csv", "text\temoji\nsun\t☀️\n".as_bytes(), 1),
            ("sep-line.csv", "sep=,\ntext,emoji\nsun,☀️\n".as_bytes(), 1),
            ("two-headers.csv", "text,emoji\nsun,☀️\ntext,emoji\nparty,🎉\n".as_bytes(), 2),
            ("rows.tsv", "text\temoji\nsun\t☀️\nparty\t🎉\n".as_bytes(), 2),
            ("comma.tsv", "text,emoji\nsun,☀️\n".as_bytes(), 1),
            ("utf-16.csv", &utf16, 1),
            ("rows.json", "[{\"text\": \"sun\", \"emoji\": \"☀️\"}]".as_bytes(), 1),
            ("twice.csv", "text,emoji\nparty,ðŸŽ‰\nsun,☀️\n".as_bytes(), 1),
        ] {
            let dataset = load(name, content, &DatasetConfig::default());
            assert_eq!(pairs(&dataset), two[..rows], "{name}");
        }
        let nul = load("nul.csv", "text,emoji\nsu\0n,☀️\nparty,🎉\n", &DatasetConfig::default());
        assert_eq!(pairs(&nul), [("su\0n", "☀️"), ("party", "🎉")]);
        let twice = load("twice.csv", "text,emoji\nparty,ðŸŽ‰\nsun,☀️\n", &DatasetConfig::default());
        assert!(twice.report.to_string().contains("1  note: looks encoded twice"), "{}", twice.report);
        // A header in the middle stays out whatever the filter keeps.
        let any = DatasetConfig { task: EmojiFilter::None.into(), ..Default::default() };
        let headers = load("rows.csv", "text,emoji\na,b\nText, EMOJI\nc,d\n", &any);
        assert_eq!(pairs(&headers), [("a", "b"), ("c", "d")]);
    }

    #[test]
    fn columns_and_separator_are_settings() {
        let task = Task { text_column: "sentence".into(), answer_column: "emojis".into(), ..Task::emoji() };
        let config = DatasetConfig { task, ..Default::default() };
        let csv = "text;Sentence;Emojis\nx;sun;☀️\n";
        assert_eq!(pairs(&load("rows.csv", csv, &config)), [("sun", "☀️")]);
        let json = "{\"sentence\": \"sun\", \"emojis\": \"☀️\", \"text\": 3}\n";
        assert_eq!(pairs(&load("rows.jsonl", json, &config)), [("sun", "☀️")]);
        let colon = DatasetConfig { separator: Some(':'), ..Default::default() };
        assert_eq!(pairs(&load("rows.csv", "text:emoji\nsun:☀️\n", &colon)), [("sun", "☀️")]);
        let same = Task { answer_column: "text".into(), ..Task::emoji() };
        assert!(load_dataset("embedded", &same).unwrap_err().to_string().contains("setting answer_column"));
    }

    #[test]
    fn a_folder_is_read_as_a_dataset() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let source = folder.path().to_str().unwrap();
        write("data/rows.csv", "text;emoji\nsun;☀️\n");
        write("notes.md", "x");
        let dataset = load_dataset(source, EmojiFilter::PurelyEmoji).unwrap();
        assert_eq!(pairs(&dataset), [("sun", "☀️")]);
        write("more.csv", "text,emoji\nparty,🎉\nx,\n");
        let error = failure(source);
        assert!(error.contains("not clear which of its 2 tables"), "{error}");
        assert!(error.contains(&format!("{source}/data/rows.csv")), "{error}");
        write(
            "README.md",
            "---\nconfigs:\n- config_name: a\n  default: true\n  data_files:\n  - split: train\n    \
                            path: ['*.csv', data/*]\n  - split: test\n    path: more.csv\n---\n",
        );
        let dataset = load_dataset(source, EmojiFilter::PurelyEmoji).unwrap();
        assert_eq!(pairs(&dataset), [("party", "🎉"), ("sun", "☀️")]);
        assert!(dataset.report.to_string().contains("an empty answer (rows 2)"), "{}", dataset.report);
        let test = DatasetConfig { split: "test".into(), ..Default::default() };
        assert_eq!(pairs(&load_dataset_with(source, &test).unwrap()), [("party", "🎉")]);
        write("data/rows.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 81234\n");
        let error = failure(source);
        assert!(error.contains("rows.csv: is a Git LFS pointer"), "{error}");
    }

    #[test]
    fn no_row_left() {
        let error = failure_of("rows.csv", "text,emoji\nhello,world\nsun,\n,🎉\n");
        let summary = "3 rows read; 1 with text beside the emoji, first on line 2; \
                       1 with an empty answer, first on line 3; 1 with an empty text, first on line 4";
        assert!(error.contains(summary), "{error}");
    }

    #[test]
    fn google_csv() {
        let path = crate::settings::setting("EMOJI_LAB_REAL_CSV", "");
        if !Path::new(&path).exists() {
            println!("skipped: EMOJI_LAB_REAL_CSV names no file (Google's CSV, from the Gemma cookbook)");
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
