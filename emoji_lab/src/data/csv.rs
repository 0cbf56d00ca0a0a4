//! Rows from comma-separated values, as Python's `datasets` reads them (through pandas).

use std::io::Read;

use super::dataset::{Row, decode, wrong_columns};
use crate::error::{Error, Result};

/// A last record put behind the file. If it does not come back as a record of its own, a quote
/// was still open at the end of the file, which the csv crate does not report.
const END: &str = "\n\0end";

/// Reads columns `text` and `emoji`, and ignores others. `name` is what errors call the file.
pub(super) fn read_csv(name: &str, bytes: &[u8]) -> Result<Vec<Row>> {
    let text = decode(name, bytes)?;
    let mut reader = ::csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true) // field counts are checked below, with an error that says more
        .from_reader(text.as_bytes().chain(END.as_bytes()));
    let mut lines = Lines::new(text);
    let mut header: Option<(::csv::StringRecord, usize, usize)> = None;
    let mut rows = Vec::new();
    let mut record = ::csv::StringRecord::new();
    loop {
        let more = reader.read_record(&mut record).map_err(|e| {
            Error::dataset(name, format!("cannot be read as CSV: {e}"), "Save it as CSV again")
        })?;
        let line = lines.of(record.position().map_or(0, |p| p.byte()) as usize);
        let at = format!("{name}, line {line}");
        let ended = record.len() == 1 && record[0] == END[1..];
        if ended {
            break;
        }
        if !more || record.iter().next_back().is_some_and(|last| last.ends_with(END)) {
            return Err(Error::dataset(
                at,
                "a double quote is opened in this row and never closed",
                "Close it, or write a double quote inside a quoted field twice",
            ));
        }
        if is_blank(&record) && !lines.at_quote() {
            continue;
        }
        let Some((columns, text_at, emoji_at)) = &header else {
            let place = |wanted| record.iter().position(|column| column == wanted);
            match (place("text"), place("emoji")) {
                (Some(text), Some(emoji)) => header = Some((record.clone(), text, emoji)),
                _ => return Err(wrong_columns(&at, record.iter())),
            }
            continue;
        };
        match (record.len() == columns.len(), record.get(*text_at), record.get(*emoji_at)) {
            (true, Some(text), Some(emoji)) => {
                rows.push(Row { line, text: text.to_owned(), emoji: emoji.to_owned() })
            }
            _ => {
                let (has, wanted) = (record.len(), columns.len());
                return Err(Error::dataset(
                    at,
                    format!(
                        "the row has {has} field{}, the header {wanted}",
                        if has == 1 { "" } else { "s" }
                    ),
                    "Put double quotes around a field with a comma in it, and write an empty field as two commas",
                ));
            }
        }
    }
    match (header, rows.is_empty()) {
        (None, _) => Err(Error::dataset(
            name,
            "the file has only blank lines",
            "Give a file with columns `text` and `emoji`",
        )),
        (Some(_), true) => Err(Error::dataset(name, "there is a header and no rows", "Add rows under it")),
        (Some(_), false) => Ok(rows),
    }
}

/// A record of nothing but spaces; unless they are in quotes, pandas skips it too.
fn is_blank(record: &::csv::StringRecord) -> bool {
    record.len() == 1 && record[0].trim_matches([' ', '\t']).is_empty()
}

/// Line numbers of places in a text, asked for in order.
///
/// The csv crate's own count puts a record behind a CRLF or a blank line on the line before.
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

    /// The line of the first character at or behind `byte` that does not end a line.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<(usize, String, String)> {
        let rows = read_csv("t.csv", text.as_bytes()).unwrap();
        rows.into_iter().map(|r| (r.line, r.text, r.emoji)).collect()
    }

    fn row(line: usize, text: &str, emoji: &str) -> (usize, String, String) {
        (line, text.into(), emoji.into())
    }

    fn failure(text: &str) -> String {
        read_csv("t.csv", text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn plain_rows_and_other_columns() {
        assert_eq!(rows("text,emoji\nsun,☀️\n"), [row(2, "sun", "☀️")]);
        assert_eq!(rows("emoji,id,text\n☀️,7, sun "), [row(2, " sun ", "☀️")]);
        assert_eq!(rows("text,emoji\nNA,\n,null\n"), [row(2, "NA", ""), row(3, "", "null")]);
    }

    #[test]
    fn byte_order_mark() {
        assert_eq!(rows("\u{feff}text,emoji\nsun,☀️\n"), [row(2, "sun", "☀️")]);
        assert_eq!(rows("\u{feff}\"text\",emoji\r\nsun,☀️\r\n"), [row(2, "sun", "☀️")]);
    }

    #[test]
    fn quotes_newlines_and_line_numbers() {
        let unix = "text,emoji\n\"a, b\",🎉\n\n \t\n\"two\nlines \"\"so\"\"\",🎉\nlast \"one\",🎉";
        let expected =
            [row(2, "a, b", "🎉"), row(5, "two\nlines \"so\"", "🎉"), row(7, "last \"one\"", "🎉")];
        assert_eq!(rows(unix), expected);
        let expected =
            [row(2, "a, b", "🎉"), row(5, "two\r\nlines \"so\"", "🎉"), row(7, "last \"one\"", "🎉")];
        assert_eq!(rows(&unix.replace('\n', "\r\n")), expected);
        let expected =
            [row(2, "a, b", "🎉"), row(5, "two\rlines \"so\"", "🎉"), row(7, "last \"one\"", "🎉")];
        assert_eq!(rows(&unix.replace('\n', "\r")), expected);
        assert_eq!(rows("\n\r\ntext,emoji\n\nsun,☀️"), [row(5, "sun", "☀️")]);
    }

    #[test]
    fn quotes_out_of_place_are_read_as_pandas_does() {
        assert_eq!(rows("text,emoji\na\"b\"c,\"x\"y\n"), [row(2, "a\"b\"c", "xy")]);
        assert_eq!(rows("text,emoji\n\"a\" ,b\n , "), [row(2, "a ", "b"), row(3, " ", " ")]);
        assert_eq!(rows("text,text,emoji\na,b,c"), [row(2, "a", "c")]);
    }

    #[test]
    fn wrong_columns_are_named() {
        let error = failure("Text,Emoji,\"a \"\"b\"\"\"\n");
        assert!(error.contains(
            r#"t.csv, line 1: there are no columns `text` and `emoji`; the columns are "Text", "Emoji""#
        ));
        assert!(failure("text;emoji\na;🎉\n").contains("Separate the columns with commas"));
        assert!(failure("sun,☀️\n").contains("the columns are \"sun\", \"☀️\""));
        assert!(failure("text,label\n").contains("there is no column `emoji`; the columns are \"text\""));
        let many = (0..40).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        assert!(failure(&many).contains("\"11\", and 28 more."));
    }

    #[test]
    fn rows_with_other_field_counts() {
        assert!(
            failure("text,emoji\na,🎉\nb\n").contains("t.csv, line 3: the row has 1 field, the header 2")
        );
        assert!(failure("text,emoji\na,🎉\n\"\"\n").contains("line 3: the row has 1 field"));
        let error = failure("text,emoji\n\"x\ny\",🎉\na, b,🎉\n");
        assert!(
            error.contains("t.csv, line 4: the row has 3 fields, the header 2. Put double quotes"),
            "{error}"
        );
    }

    #[test]
    fn quote_that_never_closes() {
        for end in ["", "\n", ",🎉\nmore,🎉\n", "\",🎉\nlast,\"🎉\n"] {
            let error = failure(&format!("text,emoji\na,🎉\n\"b{end}"));
            let line = if end.contains("last") { 4 } else { 3 };
            assert!(error.contains(&format!("t.csv, line {line}: a double quote is opened")), "{error}");
        }
    }

    #[test]
    fn nothing_in_it() {
        assert!(failure("text,emoji\n\n").contains("there is a header and no rows"));
        assert!(failure(" \n\n").contains("only blank lines"));
        assert!(failure("\u{feff}").contains("only blank lines"));
    }
}
