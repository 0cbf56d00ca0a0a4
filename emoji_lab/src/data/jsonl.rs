//! Rows from JSON Lines: one object a line.

use serde_json::{Map, Value};

use super::dataset::{Row, decode, wrong_columns};
use crate::error::{Error, Result};

/// Reads the strings `text` and `emoji` of each line, and ignores other keys. `null` counts as an
/// empty string. `name` is what errors call the file.
pub(super) fn read_jsonl(name: &str, bytes: &[u8]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (i, content) in decode(name, bytes)?.split('\n').enumerate() {
        if content.trim().is_empty() {
            continue;
        }
        let line = i + 1;
        let at = format!("{name}, line {line}");
        let object = parse(&at, content)?;
        rows.push(Row { line, text: field(&at, &object, "text")?, emoji: field(&at, &object, "emoji")? });
    }
    if rows.is_empty() {
        return Err(Error::dataset(
            name,
            "the file has only blank lines",
            "Give one object a line, like {\"text\": \"party\", \"emoji\": \"🎉\"}",
        ));
    }
    Ok(rows)
}

fn parse(at: &str, content: &str) -> Result<Map<String, Value>> {
    const HELP: &str = "Write one whole object a line, like {\"text\": \"party\", \"emoji\": \"🎉\"}";
    match serde_json::from_str(content) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(Error::dataset(at, format!("{} where an object should be", kind(&other)), HELP)),
        Err(e) => {
            // serde_json counts from the start of the piece it was given; the column is right,
            // its line is always 1.
            let said = e.to_string();
            let what = said.split(" at line ").next().unwrap_or(&said);
            Err(Error::dataset(at, format!("malformed JSON in column {}: {what}", e.column()), HELP))
        }
    }
}

fn field(at: &str, object: &Map<String, Value>, key: &str) -> Result<String> {
    match object.get(key) {
        Some(Value::String(value)) => Ok(value.clone()),
        Some(Value::Null) => Ok(String::new()),
        Some(other) => Err(Error::dataset(
            at,
            format!("`{key}` is {}, not a string", kind(other)),
            "Put double quotes around the value, or remove the row",
        )),
        None => Err(wrong_columns(at, object.keys().map(String::as_str))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(text: &str) -> String {
        read_jsonl("t.jsonl", text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn rows_of_objects() {
        let text = "\u{feff}{\"text\": \"two\\nlines\", \"emoji\": \"🎉\", \"id\": 1}\r\n\n\
                    {\"emoji\": null, \"text\": \"\\ud83c\\udf89\"}";
        let expected = [
            Row { line: 1, text: "two\nlines".into(), emoji: "🎉".into() },
            Row { line: 3, text: "🎉".into(), emoji: String::new() },
        ];
        assert_eq!(read_jsonl("t.jsonl", text.as_bytes()).unwrap(), expected);
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
        assert!(failure("[{\"text\": \"a\"}]").contains("line 1: a list where an object should be"));
        assert!(failure("{\"text\": \"\\ud83c\"}").contains("line 1: malformed JSON"));
    }

    #[test]
    fn values_that_are_no_strings() {
        assert!(
            failure("{\"text\": 3, \"emoji\": \"b\"}").contains("line 1: `text` is a number, not a string")
        );
        assert!(failure("{\"text\": \"a\", \"emoji\": [\"b\"]}").contains("`emoji` is a list, not a string"));
    }

    #[test]
    fn missing_keys() {
        let error = failure("{\"input\": \"a\", \"output\": \"b\"}");
        let expected =
            "line 1: there are no columns `text` and `emoji`; the columns are \"input\", \"output\"";
        assert!(error.contains(expected), "{error}");
        assert!(failure("{}").contains("nor any other"));
        assert!(failure("\n \n").contains("only blank lines"));
    }
}
