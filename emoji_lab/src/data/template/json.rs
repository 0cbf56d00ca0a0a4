//! `tojson` as transformers gives it to templates: Python's `json.dumps`, nothing escaped for HTML.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Lists in lists deeper than that are refused, as Python's recursion limit does.
const DEEPEST: usize = 200;

/// What `json.dumps` is told.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<bool>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let given: Option<bool> = options.get("ensure_ascii")?;
    let indent = indent.or(options.get("indent")?);
    let separators: Option<Value> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent).unwrap_or(0).min(1000)),
        }),
    };
    let separator = |at: usize, default: &str| -> Result<String, Error> {
        match &separators {
            Some(pair) if !pair.is_none() => {
                let part = pair.get_item_by_index(at)?;
                part.as_str().map(str::to_owned).ok_or_else(|| refused("separators are two texts"))
            }
            _ => Ok(default.to_owned()),
        }
    };
    let style = Style {
        ensure_ascii: given.or(ensure_ascii).unwrap_or(false),
        item_separator: separator(0, if indent.is_some() { "," } else { ", " })?,
        key_separator: separator(1, ": ")?,
        sort_keys: sort_keys.unwrap_or(false),
        indent,
    };
    let mut out = String::new();
    style.write(state, &mut out, value, 0)?;
    Ok(out)
}

fn refused(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

impl Style {
    fn write(&self, state: &State, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(refused("tojson: lists in lists too deep"));
        }
        // Paid for as it grows, not when it is whole.
        state.consume_fuel(1)?;
        let before = out.len();
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?;
                self.list(state, out, ('[', ']'), items, depth, |out, item| {
                    self.write(state, out, &item, depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(state, out, ('{', '}'), keys.into_iter(), depth, |out, key| {
                    self.key(out, &key)?;
                    out.push_str(&self.key_separator);
                    self.write(state, out, &value.get_item(&key)?, depth + 1)
                })?;
            }
            other => return Err(refused(format!("tojson: {other} is not JSON serializable"))),
        }
        state.consume_fuel((out.len() - before) as u64 / 64)
    }

    fn list(
        &self,
        state: &State,
        out: &mut String,
        (open, close): (char, char),
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut item: impl FnMut(&mut String, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |out: &mut String, depth: usize| -> Result<(), Error> {
            let Some(indent) = &self.indent else { return Ok(()) };
            state.consume_fuel((indent.len() * depth / 64) as u64)?;
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
            Ok(())
        };
        out.push(open);
        let mut empty = true;
        for value in items {
            if !empty {
                out.push_str(&self.item_separator);
            }
            empty = false;
            line(out, depth + 1)?;
            item(out, value)?;
        }
        if !empty {
            line(out, depth)?;
        }
        out.push(close);
        Ok(())
    }

    fn key(&self, out: &mut String, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.text(out, key.as_str().unwrap_or_default()),
            ValueKind::None => out.push_str("\"null\""),
            ValueKind::Bool => out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
            ValueKind::Number => out.push_str(&format!("\"{}\"", number(key))),
            other => return Err(refused(format!("tojson: {other} as a key"))),
        }
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) if x.is_nan() => "NaN".to_owned(),
        Ok(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Ok(x) => super::python::float(x),
        Err(_) => value.to_string(),
    }
}
