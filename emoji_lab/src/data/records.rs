//! The records of a CSV file, one after the other, with the lines they begin on.

use std::io::{Chain, Read};

use super::separator::name_of;
use crate::error::{Error, Result};
use crate::table_files::{CsvOptions, Skip};

/// A last record put after the file. If it does not come back as a record of its own, a quote
/// was still open at the end of the file, which the csv crate does not report.
const END: &str = "\n\0end";

/// A row with another number of fields than the header.
pub(super) struct OddRow {
    pub has: usize,
    pub wanted: usize,
    /// What is too much is empty.
    pub empty_end: bool,
}

/// The records of a text, with the lines they begin on.
pub(super) struct Records<'a> {
    pub name: &'a str,
    text: &'a str,
    pub start: usize,
    pub separator: u8,
    csv: &'a CsvOptions,
    reader: ::csv::Reader<Chain<&'a [u8], &'static [u8]>>,
    lines: Lines<'a>,
    pub record: ::csv::StringRecord,
}

impl<'a> Records<'a> {
    pub fn new(name: &'a str, text: &'a str, start: usize, csv: &'a CsvOptions, separator: u8) -> Self {
        let reader = builder(csv, separator).from_reader(text.as_bytes()[start..].chain(END.as_bytes()));
        let record = ::csv::StringRecord::new();
        Self { name, text, start, separator, csv, reader, lines: Lines::new(text), record }
    }

    /// Reads the next record that is not blank; its line, or none at the end of the text.
    pub fn next(&mut self) -> Result<Option<usize>> {
        loop {
            let more = self.reader.read_record(&mut self.record).map_err(|e| {
                Error::dataset(self.name, format!("cannot be read as CSV: {e}"), "Save it as CSV again")
            })?;
            let record = &self.record;
            let place = self.start + record.position().map_or(0, |p| p.byte()) as usize;
            // The record that was put after the text: the place of a record can be that of the line
            // break before it.
            if record.len() == 1 && record[0] == END[1..] && place + 2 >= self.text.len() {
                return Ok(None);
            }
            let line = self.lines.of(place);
            if let Some(open) = record.iter().next_back().and_then(|last| last.strip_suffix(END)) {
                return Err(self.open_quote(open));
            }
            if !more {
                return Err(self.open_quote(""));
            }
            let skipped = matches!(&self.csv.skip, Skip::These(lines) if lines.contains(&(line - 1)));
            if !skipped && (!is_blank(record) || self.lines.at_quote()) {
                return Ok(Some(line));
            }
        }
    }

    /// The error for a quote that is open at the text's end, with `open` after it.
    fn open_quote(&self, open: &str) -> Error {
        let line = line_ends(self.text) + 1 - line_ends(open);
        Error::dataset(
            format!("{}, line {line}", self.name),
            "a double quote is opened in this row and never closed",
            "Close it, or write a double quote inside a quoted field twice",
        )
    }

    /// The error for the record just read, which has another number of fields than the header.
    pub fn odd(&self, line: usize, wrong: &OddRow) -> Error {
        let OddRow { has, wanted, empty_end } = *wrong;
        let s = if has == 1 { "" } else { "s" };
        let place = self.start + self.record.position().map_or(0, |p| p.byte()) as usize;
        let end = (self.start + self.reader.position().byte() as usize).min(self.text.len());
        let raw = self.text.as_bytes().get(place..end).unwrap_or_default();
        let (name, sep) = (name_of(self.separator), self.separator as char);
        let help = match self.csv.escape.is_none() && raw.windows(2).any(|pair| pair == b"\\\"") {
            true => {
                "Write a double quote inside a quoted field twice (\"\"), not after a backslash (\\\")".into()
            }
            false if has > wanted && empty_end => {
                format!("Remove the {name} at the end of the row, or give the header one, too ({sep})")
            }
            false => format!(
                "Put double quotes around a field with a {name} in it, and write an empty field as two {name}s"
            ),
        };
        let problem = format!("the row has {has} field{s}, the header {wanted}");
        Error::dataset(format!("{}, line {line}", self.name), problem, help)
    }
}

fn builder(csv: &CsvOptions, separator: u8) -> ::csv::ReaderBuilder {
    let mut builder = ::csv::ReaderBuilder::new();
    builder
        .has_headers(false)
        .flexible(true) // field counts are checked here, with an error that says more
        .delimiter(separator)
        .quoting(csv.quote.is_some())
        .quote(csv.quote.unwrap_or(b'"'))
        .double_quote(csv.double_quote)
        .escape(csv.escape);
    builder
}

/// The first records of a text that are not blank, at most `count`.
pub(super) fn first_records(text: &str, csv: &CsvOptions, separator: u8, count: usize) -> Vec<Vec<String>> {
    let mut reader = builder(csv, separator).from_reader(text.as_bytes());
    let records = reader.records().map_while(|record| record.ok());
    let full = records.filter(|record| !is_blank(record)).take(count);
    full.map(|record| record.iter().map(str::to_owned).collect()).collect()
}

/// A record of nothing but spaces; unless they are in quotes, pandas skips it too.
fn is_blank(record: &::csv::StringRecord) -> bool {
    record.len() == 1 && record[0].trim_matches([' ', '\t']).is_empty()
}

/// The place after `count` lines from `start` on.
pub(super) fn skip_lines(text: &str, start: usize, count: usize) -> usize {
    let mut place = start;
    for _ in 0..count {
        let Some(end) = text[place..].find(['\n', '\r']) else { return text.len() };
        place += end + if text[place + end..].starts_with("\r\n") { 2 } else { 1 };
    }
    place
}

/// How many lines end in a text, by any system's line ends.
fn line_ends(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |i: &usize| bytes[*i] == b'\n' || (bytes[*i] == b'\r' && bytes.get(i + 1) != Some(&b'\n'));
    (0..bytes.len()).filter(ends).count()
}

/// Line numbers of places in a text, asked for in order.
///
/// The csv crate's own count puts a record after a CRLF or a blank line on the line before.
struct Lines<'a> {
    text: &'a [u8],
    counted: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), counted: 0, line: 1 }
    }

    /// Whether a double quote stands at the place last asked for.
    fn at_quote(&self) -> bool {
        self.text.get(self.counted) == Some(&b'"')
    }

    /// The line of the first character at or after `byte` that does not end a line.
    fn of(&mut self, byte: usize) -> usize {
        while let Some(&here) = self.text.get(self.counted) {
            let ends = here == b'\n' || here == b'\r';
            if self.counted >= byte && !ends {
                break;
            }
            let pair = here == b'\r' && self.text.get(self.counted + 1) == Some(&b'\n');
            if ends && !pair {
                self.line += 1;
            }
            self.counted += 1;
        }
        self.line
    }
}
