//! What Python's texts, lists and dicts do in templates, where minijinja does otherwise or nothing.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Python's white space: Unicode's, and four control characters that Rust does not count as such.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.strip`, and Jinja's `trim`.
pub(super) fn strip(text: Cow<'_, str>, chars: Option<Cow<'_, str>>) -> String {
    text.trim_matches(|c| strips(c, chars.as_deref())).to_owned()
}

fn strips(c: char, chars: Option<&str>) -> bool {
    chars.map_or_else(|| is_space(c), |chars| chars.contains(c))
}

/// A float as Python prints it.
pub(super) fn float(x: f64) -> String {
    let digits = format!("{x:e}");
    let (mantissa, exponent) = digits.split_once('e').unwrap_or((&digits, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = x.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Methods of Python's that minijinja does not have.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(made) = text_method(state, text, name, arguments)?
    {
        return Ok(made);
    }
    match (value.kind(), name, arguments) {
        (ValueKind::Seq | ValueKind::Map, "copy", []) => return Ok(value.clone()),
        (ValueKind::Seq, "index", [what]) => {
            let at = value.try_iter()?.position(|item| item == *what);
            return at.map(Value::from).ok_or_else(|| refused("list.index: not in the list"));
        }
        (
            ValueKind::Seq,
            "append" | "extend" | "insert" | "pop" | "remove" | "clear" | "sort" | "reverse",
            _,
        )
        | (ValueKind::Map, "update" | "pop" | "popitem" | "setdefault" | "clear", _) => {
            return Err(refused(format!("{name} would change a value, which chat templates may not")));
        }
        _ => {}
    }
    unknown_method_callback(state, value, name, arguments)
}

fn text_method(state: &State, text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<Cow<'_, str>>,) = from_args(arguments)?;
            let strips = |c: char| strips(c, chars.as_deref());
            Value::from(match name {
                "strip" => text.trim_matches(strips),
                "lstrip" => text.trim_start_matches(strips),
                _ => text.trim_end_matches(strips),
            })
        }
        "removeprefix" => {
            let (part,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_prefix(part).unwrap_or(text))
        }
        "removesuffix" => {
            let (part,): (&str,) = from_args(arguments)?;
            Value::from(text.strip_suffix(part).unwrap_or(text))
        }
        "split" | "rsplit" => split(text, name == "rsplit", arguments)?,
        "partition" | "rpartition" => {
            let (by,): (&str,) = from_args(arguments)?;
            if by.is_empty() {
                return Err(refused(format!("{name} by an empty text")));
            }
            let parts = if name == "partition" { text.split_once(by) } else { text.rsplit_once(by) };
            let (before, by, after) = match parts {
                Some((before, after)) => (before, by, after),
                None if name == "partition" => (text, "", ""),
                None => ("", "", text),
            };
            Value::from(minijinja::value::Tuple::from([before, by, after].map(Value::from)))
        }
        "format" => {
            // A width or a precision is made at once, whatever it costs.
            let longest = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
            if longest.is_some_and(|digits| digits > 3) && text.contains(':') {
                return Err(refused("str.format: a width of more than three digits"));
            }
            return Ok(None);
        }
        "join" => {
            let (items,): (&Value,) = from_args(arguments)?;
            let mut joined = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let item = item.as_str().ok_or_else(|| refused("str.join takes texts")).map(str::to_owned)?;
                let by = if i > 0 { text } else { "" };
                state.consume_fuel(((by.len() + item.len()) / 64) as u64)?;
                joined += by;
                joined += &item;
            }
            joined.into()
        }
        "istitle" => {
            let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
            let titled = |word: &str| {
                let mut chars = word.chars();
                chars.next().is_some_and(char::is_uppercase) && !chars.any(char::is_uppercase)
            };
            let mut words = words.peekable();
            (words.peek().is_some() && words.all(titled)).into()
        }
        "splitlines" => {
            let (keep, options): (Option<bool>, Kwargs) = from_args(arguments)?;
            let keep = keep.or(options.get("keepends")?).unwrap_or(false);
            options.assert_all_used()?;
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "find" | "rfind" | "index" | "rindex" => find(text, name, arguments)?,
        "startswith" | "endswith" if arguments.len() > 1 => {
            let (what, start, end): (&Value, i64, Option<i64>) = from_args(arguments)?;
            let Some((_, part)) = part_of(text, start, end) else { return Ok(Some(Value::from(false))) };
            return text_or_any(part, name, what).map(|found| Some(Value::from(found)));
        }
        "zfill" => {
            let (width,): (usize,) = from_args(arguments)?;
            let missing = fill(state, text, width, '0')?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            Value::from(format!("{sign}{missing}{digits}"))
        }
        "center" | "ljust" | "rjust" => {
            let (width, with): (usize, Option<&str>) = from_args(arguments)?;
            let mut chars = with.unwrap_or(" ").chars();
            let (Some(with), None) = (chars.next(), chars.next()) else {
                return Err(refused(format!("{name} fills with one character")));
            };
            let missing = fill(state, text, width, with)?;
            let count = missing.chars().count();
            let left = match name {
                "ljust" => 0,
                "rjust" => count,
                // As Python does: the odd one goes to the left where the width is odd.
                _ => count / 2 + (count & width & 1),
            };
            let at = left * with.len_utf8();
            Value::from(format!("{}{text}{}", &missing[..at], &missing[at..]))
        }
        "swapcase" => {
            text.chars()
                .map(|c| {
                    if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
                })
                .collect::<String>()
                .into()
        }
        "casefold" => text.to_lowercase().replace('ß', "ss").into(),
        "isdecimal" => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        "isspace" => (!text.is_empty() && text.chars().all(is_space)).into(),
        "isprintable" => (!text.chars().any(|c| c.is_control() || (is_space(c) && c != ' '))).into(),
        "isidentifier" => {
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            (starts && text.chars().all(|c| c.is_alphanumeric() || c == '_')).into()
        }
        "count" => {
            let (what,): (&str,) = from_args(arguments)?;
            match what.is_empty() {
                true => (text.chars().count() + 1).into(),
                false => text.matches(what).count().into(),
            }
        }
        _ => return Ok(None),
    }))
}

/// `width` minus the text's characters, of `with`; paid for before it is made.
fn fill(state: &State, text: &str, width: usize, with: char) -> Result<String, Error> {
    let missing = width.saturating_sub(text.chars().count());
    state.consume_fuel((missing as u64).saturating_mul(with.len_utf8() as u64) / 64)?;
    Ok(std::iter::repeat_n(with, missing).collect())
}

/// `str.split` and `str.rsplit`, by a text or by white space.
fn split(text: &str, from_end: bool, arguments: &[Value]) -> Result<Value, Error> {
    let (by, most, options): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let by = by.or(options.get("sep")?).filter(|by| !by.is_none());
    let most = most.or(options.get("maxsplit")?).and_then(|most| usize::try_from(most).ok());
    options.assert_all_used()?;
    let most = most.unwrap_or(usize::MAX).saturating_add(1);
    let Some(by) = by else { return Ok(split_words(text, from_end, most)) };
    let by = by.as_str().filter(|by| !by.is_empty()).ok_or_else(|| refused("split by an empty text"))?;
    let mut parts: Vec<&str> =
        if from_end { text.rsplitn(most, by).collect() } else { text.splitn(most, by).collect() };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

fn split_words(text: &str, from_end: bool, most: usize) -> Value {
    let (mut words, mut rest) = (vec![], text);
    if from_end {
        rest = rest.trim_end_matches(is_space);
        while !rest.is_empty() && words.len() + 1 < most {
            let start =
                rest.rfind(is_space).map_or(0, |at| at + rest[at..].chars().next().map_or(1, char::len_utf8));
            words.push(&rest[start..]);
            rest = rest[..start].trim_end_matches(is_space);
        }
        words.extend((!rest.is_empty()).then_some(rest));
        words.reverse();
    } else {
        rest = rest.trim_start_matches(is_space);
        while !rest.is_empty() && words.len() + 1 < most {
            let end = rest.find(is_space).unwrap_or(rest.len());
            words.push(&rest[..end]);
            rest = rest[end..].trim_start_matches(is_space);
        }
        words.extend((!rest.is_empty()).then_some(rest));
    }
    words.into_iter().map(Value::from).collect()
}

/// `str.splitlines`, which knows more ends of a line than Rust does.
fn lines(text: &str, keep: bool) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    let (mut lines, mut rest) = (vec![], text);
    while !rest.is_empty() {
        let end = rest.find(ENDS).unwrap_or(rest.len());
        let mark = match rest[end..].chars().next() {
            Some('\r') if rest[end + 1..].starts_with('\n') => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        lines.push(&rest[..if keep { end + mark } else { end }]);
        rest = &rest[end + mark..];
    }
    lines
}

/// The part of `text` from character `start` up to `end`, and the byte it begins at.
fn part_of(text: &str, start: i64, end: Option<i64>) -> Option<(usize, &str)> {
    let count = text.chars().count() as i64;
    let place = |at: i64| if at < 0 { (count + at).max(0) } else { at.min(count) } as usize;
    if start > count {
        return None;
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    let (from, to) = (byte(place(start)), byte(place(end.unwrap_or(count))));
    text.get(from..to).map(|part| (from, part))
}

fn find(text: &str, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(arguments)?;
    let found = part_of(text, start.unwrap_or(0), end).and_then(|(at, part)| {
        let found = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
        found.map(|found| text[..at + found].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(refused(format!("str.{name}: not in the text"))),
    }
}

fn text_or_any(text: &str, name: &str, what: &Value) -> Result<bool, Error> {
    let fits = |what: &Value| {
        what.as_str()
            .map(|what| if name == "startswith" { text.starts_with(what) } else { text.ends_with(what) })
    };
    if let Some(found) = fits(what) {
        return Ok(found);
    }
    Ok(what.try_iter()?.any(|what| fits(&what) == Some(true)))
}

/// Jinja's `escape`, which names quotes by their numbers.
pub(super) fn escape(text: Cow<'_, str>) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&#34;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// Python's `dict(…)`: pairs, a dict, names, or several of them.
pub(super) fn dict(given: Rest<Value>, names: Kwargs) -> Result<Value, Error> {
    let mut pairs = vec![];
    for value in given.iter() {
        for item in value.try_iter()? {
            match value.kind() {
                ValueKind::Map => pairs.push((item.clone(), value.get_item(&item)?)),
                _ => pairs.push((item.get_item_by_index(0)?, item.get_item_by_index(1)?)),
            }
        }
    }
    for name in names.args() {
        pairs.push((Value::from(name), names.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

fn refused(what: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}
