//! Rows from JSON: an object a line, or a whole document in one of the forms that people save.

use super::encoding::{decode, line_at};
use super::json::{Json, Kind, Malformed};
use super::json_rows::RowReader;
use super::options::ReadOptions;
use super::table::Intake;
use crate::error::{Error, Result};

const HELP: &str = "Write one whole object a line, like {\"text\": \"party\", \"emoji\": \"🎉\"}";

/// Reads the strings of the two columns of each object, and ignores other keys. `null` and a key that
/// an object lacks count as an empty string. `name` is what errors call the file.
///
/// The forms are: an object a line; a list of objects; an object of two lists, or of two objects with
/// the rows' numbers as keys (pandas' `to_json`); an object with such a list in it (`{"data": […]}`,
/// the Hub viewer's `{"rows": [{"row": {…}}]}`).
pub(super) fn read_json(name: &str, bytes: &[u8], options: &ReadOptions, rows: &mut Intake) -> Result<()> {
    let text = decode(name, bytes, options.files.encoding)?;
    if text.trim().is_empty() {
        return Err(Error::dataset(name, "the file has only blank lines", HELP));
    }
    let mut reader = RowReader::new(name, &text, options, rows);
    match is_lines(&text) {
        true => lines(name, &text, &mut reader)?,
        false => reader.document()?,
    }
    reader.finish()
}

/// Whether each line is a value of its own. A table of one row is so as well as a document.
fn is_lines(text: &str) -> bool {
    let mut full = line_ranges(text).filter(|(_, line)| !line.trim().is_empty()).map(|(_, line)| line);
    let (Some(first), Some(second)) = (full.next(), full.next()) else { return false };
    let whole = |line: &str| {
        let mut json = Json::new(line, 0);
        json.skip().is_ok() && json.is_at_end()
    };
    // Where the first line is torn, the second can still show what the file is meant to be.
    whole(first) || (first.trim_start().starts_with('{') && second.starts_with('{') && whole(second))
}

/// The lines of a text, with the place where each begins.
fn line_ranges(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = if text.contains('\n') { '\n' } else { '\r' };
    let mut place = 0;
    text.split(end).map(move |line| {
        let start = place;
        place += line.len() + 1;
        (start, line)
    })
}

fn lines(name: &str, text: &str, reader: &mut RowReader) -> Result<()> {
    for (i, (start, content)) in line_ranges(text).enumerate() {
        if content.trim().is_empty() {
            continue;
        }
        let at = format!("{name}, line {}", i + 1);
        let end = start + content.len();
        let mut json = Json::new(&text[..end], start);
        let wrong = |e: Malformed| malformed(&at, text, &e, HELP);
        match json.kind().map_err(wrong)? {
            Kind::Object => reader.row(&mut json, &at, i + 1)?,
            other => {
                return Err(Error::dataset(at, format!("{} where an object should be", other.says()), HELP));
            }
        }
        if !json.is_at_end() {
            let what = "something follows the object".into();
            return Err(malformed(&at, text, &Malformed { at: json.at, what }, HELP));
        }
    }
    Ok(())
}

/// The error for text that is not JSON. `at` names the line or row.
pub(super) fn malformed(at: &str, text: &str, e: &Malformed, help: &str) -> Error {
    let start = text[..e.at].rfind(['\n', '\r']).map_or(0, |end| end + 1);
    let column = text[start..e.at].chars().count() + 1;
    Error::dataset(at, format!("malformed JSON in column {column}: {}", e.what), help)
}

/// The line of a place in a text.
pub(super) fn line_of(text: &str, place: usize) -> usize {
    line_at(text.as_bytes(), place)
}

#[cfg(test)]
mod tests {
    use super::super::report::Counted;
    use super::super::table::Row;
    use super::*;
    use crate::table_files::FileOptions;

    fn read_with(text: &str, options: &ReadOptions) -> Result<(Vec<Row>, Counted)> {
        let mut rows = Vec::new();
        let mut take = |row| rows.push(row);
        let mut intake = Intake::new(&mut take);
        read_json("t.jsonl", text.as_bytes(), options, &mut intake)?;
        let counted = intake.counted;
        Ok((rows, counted))
    }

    fn rows(text: &str) -> Vec<Row> {
        read_with(text, &ReadOptions::default()).unwrap().0
    }

    fn row(line: usize, text: &str, emoji: &str) -> Row {
        Row { line, text: text.into(), answer: emoji.into() }
    }

    fn failure(text: &str) -> String {
        let error = read_with(text, &ReadOptions::default()).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    fn rows_of_objects() {
        let text = "\u{feff}{\"text\": \"two\\nlines\", \"emoji\": \"🎉\", \"id\": 1}\r\n\n\
                    {\"emoji\": null, \"text\": \"\\ud83c\\udf89\"}";
        assert_eq!(rows(text), [row(1, "two\nlines", "🎉"), row(3, "🎉", "")]);
    }

    #[test]
    fn malformed_lines() {
        let good = "{\"text\": \"a\", \"emoji\": \"b\"}\n";
        let error = failure(&format!("{good}{{\"text\": \"a\", emoji}}\n"));
        assert!(
            error.contains("t.jsonl, line 2: malformed JSON in column 15: key must be a string. "),
            "{error}"
        );
        assert!(failure(&format!("{good}{good}{{\"text\": ")).contains("line 3: malformed JSON"));
        assert!(failure(&format!("{{\"text\": \"a\",\n{good}{good}")).contains("line 1: malformed JSON"));
        assert!(failure(&format!("{good}[\"a\"]\n")).contains("line 2: a list where an object should be"));
        assert!(failure("{\"text\": \"\\ud83c\", \"emoji\": \"x\"}").contains("line 1: malformed JSON"));
        let half = failure(&format!("{good}{{\"text\": \"\\ud83d\", \"emoji\": \"x\"}}\n"));
        assert!(
            half.contains("line 2: malformed JSON in column 11: \\ud83d is half of a character"),
            "{half}"
        );
        assert!(failure(&format!("{good}{good} x")).contains("line 3: malformed JSON"));
        assert!(failure(&format!("{}{{}}\n{good}", good.trim())).contains("line 1"));
        assert!(failure("{'text': 'a', 'emoji': 'b'}\n").contains("json.dumps"));
    }

    #[test]
    fn values_that_are_no_strings() {
        assert!(
            failure("{\"text\": 3, \"emoji\": \"b\"}").contains("line 1: `text` is a number, not a string")
        );
        assert!(failure("{\"text\": \"a\", \"emoji\": [\"b\"]}").contains("`emoji` is a list, not a string"));
        assert!(
            failure("[{\"text\": true, \"emoji\": \"b\"}]")
                .contains("row 1 (line 1): `text` is true or false")
        );
    }

    #[test]
    fn missing_keys() {
        let error = failure("{\"input\": \"a\", \"output\": \"b\"}");
        let expected =
            "line 1: there are no columns `text` and `emoji`; the columns are \"input\", \"output\"";
        assert!(error.contains(expected), "{error}");
        assert!(failure("{}").contains("nor any other"));
        assert!(failure("\n \n").contains("only blank lines"));
        // A key that one row lacks is null there.
        let some = "{\"text\": \"a\", \"emoji\": \"b\"}\n{\"text\": \"c\"}\n{\"emoji\": \"d\"}\n";
        assert_eq!(rows(some), [row(1, "a", "b"), row(2, "c", ""), row(3, "", "d")]);
    }

    #[test]
    fn keys_as_people_write_them() {
        let text = "{\"Text \": \"a\", \" EMOJI\": \"b\"}\n{\"Text \": \"c\", \" EMOJI\": \"d\"}\n";
        assert_eq!(rows(text), [row(1, "a", "b"), row(2, "c", "d")]);
        assert_eq!(
            rows("{\"Text\": \"x\", \"text\": \"a\", \"TEXT\": \"y\", \"emoji\": \"b\"}"),
            [row(1, "a", "b")]
        );
        let same = failure("{\"text\": \"x\", \"text\": \"a\", \"emoji\": \"b\"}\n{}");
        assert!(same.contains("line 1: the key \"text\" stands twice in it"), "{same}");
        assert_eq!(rows("{\"id\": 1, \"id\": 2, \"text\": \"a\", \"emoji\": \"b\"}"), [row(1, "a", "b")]);
        let two = failure("{\"Text\": \"x\", \"TEXT\": \"y\", \"emoji\": \"b\"}\n{}");
        assert!(two.contains("the keys \"Text\" and \"TEXT\" could be the same column"), "{two}");
    }

    #[test]
    fn what_nobody_needs_is_passed_over() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let text = format!(
            "{{\"id\": NaN, \"text\": \"a\", \"x\": [Infinity, -Infinity, {{\"y\": None}}], \"emoji\": \"b\"}}\n\
             {{\"deep\": {deep}, \"text\": NaN, \"emoji\": \"c\", \"half\": \"\\ud83d\"}}\n"
        );
        assert_eq!(rows(&text), [row(1, "a", "b"), row(2, "", "c")]);
        let nested = format!("{}{{\"text\": 1}}{}", "{\"row\": ".repeat(50_000), "}".repeat(50_000));
        assert!(failure(&nested).contains("no columns"));
    }

    #[test]
    fn documents_in_every_form() {
        let expected = [row(1, "sun", "☀️"), row(2, "party", "🎉")];
        let one = "{\"text\": \"sun\", \"emoji\": \"☀️\"}";
        let two = "{\"text\": \"party\", \"emoji\": \"🎉\", \"score\": NaN}";
        for document in [
            format!("[{one}, {two}]"),
            format!("\u{feff}\n[\n  {one},\n  {two}\n]\n"),
            format!("{{\"data\": [{one}, {two}]}}"),
            format!("{{\"version\": 1, \"tags\": [\"x\"], \"rows\": [{one}, {two}]}}"),
            format!("{{\n\"test\": [{{\"text\": 0}}],\n\"train\": [{one}, {two}]}}"),
            format!(
                "{{\"features\": [{{\"name\": \"text\"}}], \"rows\": [{{\"row_idx\": 0, \"row\": {one}, \
                 \"truncated_cells\": []}}, {{\"row_idx\": 1, \"row\": {two}}}], \"num_rows_total\": 2}}"
            ),
            "{\"text\": [\"sun\", \"party\"], \"emoji\": [\"☀️\", \"🎉\"]}".to_owned(),
            "{\"id\": {\"0\": 1}, \"Text\": {\"0\": \"sun\", \"1\": \"party\"}, \
              \"emoji\": {\"0\": \"☀️\", \"1\": \"🎉\"}}"
                .to_owned(),
            format!("{{\"0\": {one}, \"1\": {two}}}"),
            "{\"columns\": [\"id\", \"text\", \"emoji\"], \"index\": [0, 1], \
              \"data\": [[7, \"sun\", \"☀️\"], [8, \"party\", \"🎉\"]]}"
                .to_owned(),
        ] {
            let (rows, counted) = read_with(&document, &ReadOptions::default()).unwrap();
            assert_eq!((rows.as_slice(), counted), (&expected[..], Counted::Rows), "{document}");
        }
        // One object of several lines is one row.
        assert_eq!(rows("{\n  \"text\": \"sun\",\n  \"emoji\": \"☀️\"\n}\n"), [row(1, "sun", "☀️")]);
        let files = FileOptions { field: Some("test".into()), ..Default::default() };
        let options = ReadOptions { files, ..Default::default() };
        let splits = format!("{{\"train\": [{two}], \"test\": [{one}]}}");
        assert_eq!(read_with(&splits, &options).unwrap().0, expected[..1]);
        assert!(read_with("{\"a\": 1}", &options).unwrap_err().to_string().contains("it has no `test`"));
    }

    #[test]
    fn documents_that_are_none() {
        let says = |text: &str, part: &str| assert!(failure(text).contains(part), "{}", failure(text));
        says(
            "[\n{\"text\": \"a\", \"emoji\": \"b\"},\n]",
            "line 3: malformed JSON in column 1: there is a comma",
        );
        says("[\n// rows\n{\"text\": \"a\"}]", "line 2: malformed JSON in column 1: JSON has no comments");
        says("[{\"text\": \"a\"}]", "row 1 (line 1): there is no column `emoji`; the columns are \"text\"");
        says(
            "[{\"text\": \"a\", \"emoji\": \"b\"},\n\n{\"text\": 1, \"emoji\": \"b\"}]",
            "row 2 (line 3): `text` is a number",
        );
        says("[1, 2]", "row 1 (line 1): a number where an object should be");
        says("[]", "there are no rows");
        says("{\"text\": [], \"emoji\": []}", "there are no rows");
        says("{\"text\": [\"a\", \"b\"], \"emoji\": [\"c\"]}", "row 2: `text` has more values than `emoji`");
        says("{\"text\": {\"0\": \"a\"}, \"emoji\": {\"1\": \"c\"}}", "`text` goes on with row \"0\"");
        says("{\"text\": [\"a\"], \"emoji\": [[\"c\"]]}", "row 1: `emoji` is a list, not a string");
        says("{\"a\": [{}], \"b\": [{}]}", "several lists of rows: a, b");
        says("\"text\"", "a string where a list of rows should be");
        says("text,emoji\nsun,☀️\n", "line 1: malformed JSON in column 1: expected a value");
        says("[{\"text\": \"a\", \"emoji\": \"b\"}", "the text ends before `]`");
        says(
            "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n{\"messages\": []}\n",
            "conversations already",
        );
    }
}
