//! Files with tables: which kinds there are, what people give in their place, and what a dataset's card
//! says about how they are read.

mod options;
mod other_files;

use std::path::Path;

use encoding_rs::{EUC_KR, Encoding, SHIFT_JIS, UTF_8, UTF_16BE, UTF_16LE};

pub(crate) use options::{Column, CsvOptions, FileOptions, Header, Skip};
pub(crate) use other_files::{by_content as other_by_content, by_name as other_by_name};

use crate::error::Error;

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
    /// The formats, in order of preference: what can be looked at with any editor, and needs no feature.
    pub const BY_PREFERENCE: [Self; 5] = [Self::Csv, Self::Tsv, Self::JsonLines, Self::Json, Self::Parquet];

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

/// The error for a parquet file that this build cannot read.
pub(crate) fn no_parquet(file: impl std::fmt::Display) -> Error {
    Error::dataset(
        file,
        "this is a parquet file, and emoji_lab was built without its feature `parquet`",
        "Put features = [\"parquet\"] after the path in the notebook's `:dep emoji_lab` line and restart the \
         kernel, or save the rows as csv (Python: load_dataset(…)[\"train\"].to_csv(\"rows.csv\"))",
    )
}

/// The error for a file whose name says that it is no table, or says nothing.
pub(crate) fn no_table(file: impl std::fmt::Display, name: &str) -> Error {
    if let Some(other) = other_by_name(name) {
        return Error::dataset(file, other.problem, other.help);
    }
    let ending = Path::new(name).extension().map(|ending| ending.to_string_lossy()).unwrap_or_default();
    let problem = format!("its name ends in .{ending}, which is no table that can be read");
    Error::dataset(file, problem, format!("Give {KINDS}: rename it after what it holds, or convert it"))
}

/// A character that can separate fields, as a byte.
pub(crate) fn separator_byte(c: char) -> Option<u8> {
    let byte = u8::try_from(c).ok().filter(u8::is_ascii)?;
    let fits = !byte.is_ascii_alphanumeric() && !matches!(byte, b'"' | b'\n' | b'\r' | 0);
    fits.then_some(byte)
}

/// The encoding of a name as Python writes it (`latin_1`, `cp1252`, `utf-8-sig`).
pub(crate) fn encoding_by_name(name: &str) -> Option<&'static Encoding> {
    let plain = name.trim().to_lowercase().replace('_', "-");
    match plain.as_str() {
        "utf-8-sig" | "utf8-sig" | "u8" | "utf" => Some(UTF_8),
        // Without a byte order mark it is the machine's own, which is this one on every machine of today.
        "utf-16" | "utf16" | "utf-16-le" => Some(UTF_16LE),
        "utf-16-be" => Some(UTF_16BE),
        "latin-1" | "latin" | "l1" | "iso8859-1" => Encoding::for_label(b"latin1"),
        "cp932" | "ms932" => Some(SHIFT_JIS),
        "cp936" => Encoding::for_label(b"gbk"),
        "cp949" => Some(EUC_KR),
        "mac-roman" => Encoding::for_label(b"macintosh"),
        other => {
            Encoding::for_label(other.as_bytes()).filter(|encoding| *encoding != encoding_rs::REPLACEMENT)
        }
    }
}
