//! The arguments of Python's dataset builders that a card can declare beside a configuration's files
//! (`sep: ";"`), as settings for reading.

use serde_yaml_ng::{Mapping, Value};

use crate::table_files::{Column, FileOptions, Header, Skip, encoding_by_name, separator_byte};

/// Arguments of the builders that change nothing about two columns of strings.
const NO_EFFECT: [&str; 41] = [
    "config_name",
    "data_dir",
    "data_files",
    "default",
    "description",
    "version",
    "features",
    "dataset_info",
    "drop_labels",
    "drop_metadata",
    "index_col",
    "prefix",
    "mangle_dupe_cols",
    "engine",
    "true_values",
    "false_values",
    "na_values",
    "keep_default_na",
    "na_filter",
    "verbose",
    "skip_blank_lines",
    "thousands",
    "decimal",
    "memory_map",
    "float_precision",
    "chunksize",
    "date_format",
    "parse_dates",
    "warn_bad_lines",
    "low_memory",
    "use_threads",
    "block_size",
    "newlines_in_values",
    "on_mixed_types",
    "parse_agent_traces",
    "batch_size",
    "columns",
    "sample_by",
    "keep_linebreaks",
    "license",
    "citation",
];

/// An argument that this crate does not honour: its name, and its value in a line.
pub(crate) type NotSupported = (String, String);

/// What a configuration says about its files.
pub(crate) fn file_options(arguments: &Mapping) -> Result<FileOptions, NotSupported> {
    let mut options = FileOptions::default();
    // `delimiter` goes before `sep`, and `column_names` before `names`, as in Python.
    let later = |name: &str| matches!(name, "delimiter" | "column_names");
    let named = arguments.iter().filter_map(|(name, value)| Some((name.as_str()?, value)));
    let (last, first): (Vec<_>, Vec<_>) = named.partition(|(name, _)| later(name));
    for (name, value) in first.into_iter().chain(last) {
        if value.is_null() && name != "header" || NO_EFFECT.contains(&name) {
            continue;
        }
        if set(&mut options, name, value).is_none() {
            return Err((name.to_owned(), in_a_line(value)));
        }
    }
    Ok(options)
}

/// Sets one argument; none if it cannot be honoured.
fn set(options: &mut FileOptions, name: &str, value: &Value) -> Option<()> {
    let csv = &mut options.csv;
    match name {
        "sep" | "delimiter" => csv.separator = Some(separator_byte(character(value)?)?),
        "names" | "column_names" => csv.names = Some(texts(value)?),
        "header" => {
            csv.header = match value {
                Value::Null => Header::Absent,
                Value::String(word) if word == "infer" => Header::Infer,
                Value::String(word) if word.eq_ignore_ascii_case("none") => Header::Absent,
                number => Header::Row(count(number)?),
            }
        }
        "skiprows" => {
            csv.skip = match value {
                Value::Sequence(lines) => Skip::These(lines.iter().map(count).collect::<Option<_>>()?),
                number => Skip::First(count(number)?),
            }
        }
        "usecols" => csv.only = Some(value.as_sequence()?.iter().map(column).collect::<Option<_>>()?),
        "nrows" => csv.most_rows = Some(count(value)?),
        "quotechar" => csv.quote = Some(sign(value)?).filter(|_| csv.quote.is_some()),
        "escapechar" => csv.escape = Some(sign(value)?),
        "doublequote" => csv.double_quote = value.as_bool()?,
        "quoting" => match count(value)? {
            0..=2 => {}
            3 => csv.quote = None,
            _ => return None,
        },
        "on_bad_lines" => csv.skip_bad_lines = matches!(one_of(value, &["error", "skip", "warn"])?, 1 | 2),
        "error_bad_lines" => csv.skip_bad_lines = !value.as_bool()?,
        "encoding" => options.encoding = Some(encoding_by_name(value.as_str()?)?),
        "field" => options.field = Some(value.as_str()?.to_owned()),
        // Honoured where they ask for what is done anyway.
        "skipinitialspace" | "delim_whitespace" => value.as_bool().filter(|on| !on).map(|_| ())?,
        "skipfooter" => count(value).filter(|lines| *lines == 0).map(|_| ())?,
        "lineterminator" => one_of(value, &["\n", "\r\n", "\r"]).map(|_| ())?,
        "encoding_errors" => one_of(value, &["strict"]).map(|_| ())?,
        "comment" | "dialect" | "converters" | "filters" => return None,
        // Python's library passes over what its builders do not know.
        _ => {}
    }
    Some(())
}

fn one_of(value: &Value, words: &[&str]) -> Option<usize> {
    words.iter().position(|word| value.as_str() == Some(word))
}

/// A character; YAML's `"\t"` is a tab, and so is the `\t` that people write without quotes.
fn character(value: &Value) -> Option<char> {
    match value.as_str()? {
        "\\t" => Some('\t'),
        text => text.chars().next().filter(|c| c.len_utf8() == text.len()),
    }
}

/// A character that can stand for a quote or before one.
fn sign(value: &Value) -> Option<u8> {
    let c = character(value)?;
    u8::try_from(c).ok().filter(|byte| byte.is_ascii_punctuation())
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}

fn texts(value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    value.as_sequence()?.iter().map(text).collect()
}

fn column(value: &Value) -> Option<Column> {
    match value {
        Value::String(name) => Some(Column::Name(name.clone())),
        number => count(number).map(Column::Place),
    }
}

/// A value as it can stand in an error.
fn in_a_line(value: &Value) -> String {
    const LONGEST: usize = 40;
    let text = match value {
        Value::String(text) => format!("{text:?}"),
        Value::Bool(on) => on.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Sequence(_) => "[…]".to_owned(),
        _ => "{…}".to_owned(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Result<FileOptions, NotSupported> {
        file_options(&serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn arguments_are_honoured() {
        let csv = |yaml: &str| read(yaml).unwrap().csv;
        for yaml in ["sep: \";\"", "delimiter: ';'", "delimiter: ;\nsep: ','"] {
            assert_eq!(csv(yaml).separator, Some(b';'), "{yaml}");
        }
        assert_eq!(csv("sep: \"\\t\"").separator, Some(b'\t'));
        assert_eq!(csv("sep: \\t").separator, Some(b'\t'));
        assert_eq!(csv("sep: null").separator, None);
        assert_eq!(csv("names: [text, emoji]").names.unwrap(), ["text", "emoji"]);
        assert_eq!(csv("header: null").header, Header::Absent);
        assert_eq!(csv("header: 2").header, Header::Row(2));
        assert_eq!(csv("header: infer").header, Header::Infer);
        assert_eq!(csv("skiprows: 2").skip, Skip::First(2));
        assert_eq!(csv("skiprows: [0, 3]").skip, Skip::These(vec![0, 3]));
        assert_eq!(csv("usecols: [text, 1]").only.unwrap(), [Column::Name("text".into()), Column::Place(1)]);
        assert_eq!(csv("quotechar: \"'\"\nescapechar: \"\\\\\"").quote, Some(b'\''));
        assert_eq!((csv("quoting: 3").quote, csv("quotechar: \"'\"\nquoting: 3").quote), (None, None));
        assert!(csv("on_bad_lines: skip").skip_bad_lines && !csv("on_bad_lines: error").skip_bad_lines);
        assert_eq!(read("encoding: latin-1").unwrap().encoding.unwrap().name(), "windows-1252");
        assert_eq!(read("field: data").unwrap().field.as_deref(), Some("data"));
        let none = "config_name: x\nfeatures: [{name: text, dtype: string}]\ndrop_labels: true\ncolour: red\n\
                    skipinitialspace: false\nlineterminator: \"\\n\"";
        assert_eq!(read(none), Ok(FileOptions::default()));
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (yaml, name, value) in [
            ("sep: \"\\\\s+\"", "sep", "\"\\\\s+\""),
            ("sep: \"||\"", "sep", "\"||\""),
            ("comment: '#'", "comment", "\"#\""),
            ("skipinitialspace: true", "skipinitialspace", "true"),
            ("skipfooter: 1", "skipfooter", "1"),
            ("encoding: klingon", "encoding", "\"klingon\""),
            ("header: [0, 1]", "header", "[…]"),
            ("quoting: 7", "quoting", "7"),
        ] {
            assert_eq!(read(yaml), Err((name.into(), value.into())), "{yaml}");
        }
    }
}
