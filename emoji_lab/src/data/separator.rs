//! What separates the fields of a CSV file, where nobody says it.

use super::options::ReadOptions;
use super::records::first_records;
use crate::table_files::Header;

/// What people separate fields with, the usual one first.
pub(super) const SEPARATORS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// A separator's name in an error.
pub(super) fn name_of(separator: u8) -> String {
    match separator {
        b',' => "comma".into(),
        b';' => "semicolon".into(),
        b'\t' => "tab".into(),
        other => format!("\"{}\"", other.escape_ascii()),
    }
}

/// The separator that a spreadsheet wrote into a first line of its own, as `sep=;`, and where the
/// table begins after it.
pub(super) fn declared(text: &str) -> (usize, Option<u8>) {
    let end = text.find(['\n', '\r']).unwrap_or(text.len());
    let line = text[..end].trim_end_matches(' ');
    let line = line.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(line);
    let says =
        line.get(..4).filter(|start| start.eq_ignore_ascii_case("sep=")).map(|_| &line.as_bytes()[4..]);
    match says {
        Some([separator]) if separator.is_ascii_punctuation() || *separator == b'\t' => {
            (end, Some(*separator))
        }
        _ => (0, None),
    }
}

/// The separator of `text`: the one by which its header has the wanted columns. If none is, the one
/// that cuts the first rows into most fields, as many in each, so that an error lists real columns.
pub(super) fn find(text: &str, options: &ReadOptions, usual: u8) -> u8 {
    let others = SEPARATORS.into_iter().filter(|separator| *separator != usual);
    let candidates = [usual].into_iter().chain(others);
    let csv = &options.files.csv;
    let at = match (csv.header, &csv.names) {
        (Header::Row(row), _) => row,
        _ => 0,
    };
    let mut best = (usual, (0, 0, false, 0));
    for separator in candidates {
        let records = first_records(text, csv, separator, at + 2);
        let Some(header) = records.get(at) else { continue };
        let expected = csv.names.as_ref().map_or(header.len(), Vec::len);
        let rows = records.get(at + 1..).unwrap_or_default();
        let even = header.len() == expected && rows.iter().all(|row| row.len() == expected);
        let found = match csv.names.is_some() || csv.header == Header::Absent {
            true => 0,
            false => options.columns.found(header),
        };
        // One field is no sign of a separator.
        let score = (found, usize::from(header.len() > 1 && even), header.len() > 1, header.len());
        if score > best.1 {
            best = (separator, score);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_what_separates() {
        let find = |text: &str| find(text, &ReadOptions::default(), b',') as char;
        assert_eq!(find("text,emoji\n"), ',');
        assert_eq!(find("text;emoji\nsun, sea and sand;☀️\n"), ';');
        assert_eq!(find("Text \t EMOJI\na;b,c\t☀️\n"), '\t');
        assert_eq!(find("id|\"text\"|emoji\n1|a|b"), '|');
        assert_eq!(find("\"a;text;b\",text,emoji\n"), ',');
        assert_eq!(find("\"a,b\";emoji;\"text\"\n"), ';');
        // Other names: what cuts the rows evenly.
        assert_eq!(find("input;output\nsun, sea;☀️\n"), ';');
        assert_eq!(find("input, of people;output\nsun;☀️\n"), ';');
        assert_eq!(find("input\n"), ',');
        assert_eq!(find(""), ',');
    }

    #[test]
    fn a_spreadsheet_may_say_it() {
        assert_eq!(declared("sep=;\ntext;emoji"), (5, Some(b';')));
        assert_eq!(declared("\"SEP=,\"\r\ntext,emoji"), (7, Some(b',')));
        assert_eq!(declared("sep=\t\n"), (5, Some(b'\t')));
        for not in ["sep=", "sep=;;\n", "separator\n", "text,emoji\nsep=;", "sep=a\n", "", "é☀️"] {
            assert_eq!(declared(not), (0, None), "{not}");
        }
    }
}
