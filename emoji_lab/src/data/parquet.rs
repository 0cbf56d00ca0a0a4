//! Rows from parquet files, as Python's `datasets`, pandas and the Hub's converter write them.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row as Record};
use ::parquet::schema::types::{Type, TypePtr};

use super::options::ReadOptions;
use super::report::Counted;
use super::table::{Intake, Row};
use crate::error::{Error, Result};

/// Reads the two columns, which are strings, and no others. Null counts as an empty string.
/// `name` is what errors call the file.
pub(super) fn read_parquet(name: &str, path: &Path, options: &ReadOptions, rows: &mut Intake) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io(path, "opening the dataset", e))?;
    rows.counted = Counted::Rows;
    // The parquet crate takes a file's own word for some offsets and lengths, and panics on wrong ones.
    let read = catch_unwind(AssertUnwindSafe(|| read_file(name, file, options, rows)));
    read.unwrap_or_else(|_| Err(damaged(name, "its parts contradict each other")))
}

fn damaged(name: &str, why: impl std::fmt::Display) -> Error {
    let why = why.to_string();
    Error::dataset(
        name,
        format!("cannot be read as parquet ({})", why.lines().next().unwrap_or_default()),
        "Is it whole? Download it again, or save it again (Python: to_parquet, compression snappy, zstd or gzip)",
    )
}

fn read_file(name: &str, file: File, options: &ReadOptions, rows: &mut Intake) -> Result<()> {
    let fail = |e: ParquetError| damaged(name, e);
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    let schema = reader.metadata().file_metadata().schema();
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    let (text, emoji) = options.columns.find(name, &names)?;
    let column = |place: usize| Arc::clone(&schema.get_fields()[place]);
    let both = two_columns(schema.name(), column(text), column(emoji)).map_err(fail)?;
    let (text, emoji) = (names[text].to_owned(), names[emoji].to_owned());
    let mut number = 0;
    for record in reader.get_row_iter(Some(both)).map_err(fail)? {
        number += 1;
        let at = || format!("{name}, row {number}");
        let record = record.map_err(|e| damaged(&at(), e))?;
        rows.push(Row {
            line: number,
            text: value(&record, &text).map_err(|kind| no_text(&at(), &text, kind))?,
            answer: value(&record, &emoji).map_err(|kind| no_text(&at(), &emoji, kind))?,
        });
    }
    match number {
        0 => Err(Error::dataset(name, "there are no rows", "Give a file with some")),
        _ => Ok(()),
    }
}

/// The schema that asks for two columns alone.
fn two_columns(name: &str, text: TypePtr, emoji: TypePtr) -> std::result::Result<Type, ParquetError> {
    Type::group_type_builder(name).with_fields(vec![Arc::clone(&text), Arc::clone(&emoji)]).build()
}

/// A column's text; what it is instead, if it is none.
fn value(record: &Record, column: &str) -> std::result::Result<String, &'static str> {
    match record.get_column_iter().find(|(name, _)| *name == column).map(|(_, field)| field) {
        Some(Field::Str(text)) => Ok(text.clone()),
        Some(Field::Null) => Ok(String::new()),
        Some(Field::Bytes(_)) => Err("bytes"),
        Some(Field::Bool(_)) => Err("true or false"),
        Some(Field::Group(_) | Field::ListInternal(_) | Field::MapInternal(_)) => Err("a list or structure"),
        _ => Err("a number or date"),
    }
}

fn no_text(at: &str, column: &str, kind: &str) -> Error {
    Error::dataset(
        at,
        format!("`{column}` is {kind}, not a string"),
        format!("Save the column as strings (Python: table.astype({{{column:?}: str}}))"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of `tests/python/make_parquet.py`.
    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parquet").join(name)
    }

    fn read_at(name: &str, path: &Path) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut take = |row| rows.push(row);
        read_parquet(name, path, &ReadOptions::default(), &mut Intake::new(&mut take))?;
        Ok(rows)
    }

    fn read(name: &str) -> Result<Vec<Row>> {
        read_at(name, &fixture(name))
    }

    #[test]
    fn what_python_writes_is_read() {
        let expected = [
            ("a day at the beach", "🏖️🌊"),
            ("party", "🎉"),
            ("two\nlines, \"quoted\"", "📄📄"),
            ("", "🌞"),
            ("family", "👨\u{200d}👩\u{200d}👧"),
        ];
        for name in ["pandas.parquet", "datasets.parquet", "pyarrow-zstd-v2.parquet", "pyarrow-gzip.parquet"]
        {
            let rows = read(name).unwrap();
            let pairs: Vec<_> = rows.iter().map(|row| (row.text.as_str(), row.answer.as_str())).collect();
            assert_eq!(pairs, expected, "{name}");
            assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3, 4, 5], "{name}");
        }
    }

    #[test]
    fn what_is_not_two_columns_of_strings_is_told() {
        let error = |name: &str| read(name).unwrap_err().to_string();
        assert!(error("numbers.parquet").contains("row 1: `text` is a number or date, not a string"));
        let columns = error("columns.parquet");
        assert!(
            columns.contains("no columns `text` and `emoji`; the columns are \"input\", \"output\""),
            "{columns}"
        );
        assert!(error("empty.parquet").contains("there are no rows"));
        let brotli = error("brotli.parquet").to_lowercase();
        assert!(brotli.contains("brotli") && brotli.contains("snappy, zstd or gzip"), "{brotli}");
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            read_at("x.parquet", &path)
        };
        for name in ["datasets.parquet", "pyarrow-zstd-v2.parquet"] {
            let whole = std::fs::read(fixture(name)).unwrap();
            assert!(read(&whole).is_ok());
            for length in (0..whole.len()).step_by(7) {
                let error = read(&whole[..length]).unwrap_err().to_string();
                assert!(
                    error.contains("x.parquet") && error.contains("cannot be read as parquet"),
                    "{error}"
                );
            }
            // A flipped bit may go unseen (there is no checksum); it must not stop the program.
            for at in 0..whole.len() {
                let mut spoiled = whole.clone();
                spoiled[at] ^= 1 << (at % 8);
                if let Err(error) = read(&spoiled) {
                    assert!(error.to_string().contains("x.parquet"), "{error}");
                }
            }
        }
    }
}
