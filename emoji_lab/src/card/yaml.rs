//! The little YAML that a model card's front matter needs, quoted so that any text survives.

use std::fmt::Write;

/// A YAML value.
#[derive(Debug, Clone)]
pub(crate) enum Yaml {
    Text(String),
    Number(f64),
    List(Vec<Yaml>),
    Map(Vec<(&'static str, Yaml)>),
}

impl Yaml {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    pub fn texts<'a>(texts: impl IntoIterator<Item = &'a String>) -> Self {
        Self::List(texts.into_iter().map(Self::text).collect())
    }

    /// Block-style YAML lines for a map at the top, empty lists and maps left out.
    pub fn document(map: Vec<(&'static str, Yaml)>) -> String {
        let mut out = String::new();
        Self::Map(map).write(&mut out, 0);
        out
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.iter().all(|(_, value)| value.is_empty()),
            _ => false,
        }
    }

    /// Writes the value at `depth`; the cursor stands at the start of a line, or after `- `.
    fn write(&self, out: &mut String, depth: usize) {
        match self {
            Self::Text(_) | Self::Number(_) => {
                let _ = writeln!(out, "{}", self.scalar());
            }
            Self::List(items) => {
                for item in items {
                    out.push_str(&"  ".repeat(depth));
                    out.push_str("- ");
                    item.write(out, depth + 1);
                }
            }
            Self::Map(entries) => {
                let mut first = true;
                for (key, value) in entries.iter().filter(|(_, value)| !value.is_empty()) {
                    // In a list the first key stands after the dash.
                    if !(first && out.ends_with("- ")) {
                        out.push_str(&"  ".repeat(depth));
                    }
                    first = false;
                    match value {
                        Self::Text(_) | Self::Number(_) => {
                            let _ = writeln!(out, "{key}: {}", value.scalar());
                        }
                        _ => {
                            let _ = writeln!(out, "{key}:");
                            value.write(out, depth + 1);
                        }
                    }
                }
            }
        }
    }

    fn scalar(&self) -> String {
        match self {
            Self::Text(text) if is_plain(text) => text.clone(),
            Self::Text(text) => quoted(text),
            Self::Number(number) if number.is_finite() => format!("{number:?}"),
            Self::Number(number) if number.is_nan() => ".nan".to_string(),
            Self::Number(number) => if *number > 0.0 { ".inf" } else { "-.inf" }.to_string(),
            Self::List(_) | Self::Map(_) => String::new(),
        }
    }
}

/// Whether a text stays itself without quotes, by a rule much narrower than YAML's: letters, digits
/// and `-_./` between letters, and no word that YAML 1.1 reads as a truth value or nothing.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 10] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n", "none"];
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphabetic());
    letter(text.chars().next())
        && text.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
}

/// A double-quoted YAML text.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            // Controls, line separators, the byte-order mark and noncharacters are not printable in YAML.
            c if c.is_control()
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') =>
            {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted_where_yaml_would_change_them() {
        for plain in ["gemma", "google/gemma-3-270m-it", "text-generation", "en"] {
            assert_eq!(Yaml::text(plain).scalar(), plain);
        }
        for text in [
            "no",
            "Yes",
            "null",
            "",
            "1",
            "1e3",
            "- a",
            "a: b",
            "a #b",
            "~",
            "x ",
            "[a]",
            "2024-01-01",
            "a.",
            "😀",
        ] {
            assert_eq!(Yaml::text(text).scalar(), format!("\"{text}\""));
        }
        assert_eq!(Yaml::text("a\"b\\c\nd\u{7f}").scalar(), r#""a\"b\\c\nd\u007f""#);
    }

    #[test]
    fn lists_and_maps_nest() {
        let document = Yaml::document(vec![
            ("license", Yaml::text("gemma")),
            ("empty", Yaml::List(vec![])),
            ("tags", Yaml::texts(&["emoji".to_string(), "no".to_string()])),
            (
                "model-index",
                Yaml::List(vec![Yaml::Map(vec![
                    ("name", Yaml::text("x")),
                    (
                        "results",
                        Yaml::List(vec![Yaml::Map(vec![
                            ("task", Yaml::Map(vec![("type", Yaml::text("text-generation"))])),
                            ("value", Yaml::Number(1.0)),
                        ])]),
                    ),
                ])]),
            ),
        ]);
        let expected = "license: gemma\ntags:\n  - emoji\n  - \"no\"\nmodel-index:\n  - name: x\n    results:\n      \
                        - task:\n          type: text-generation\n        value: 1.0\n";
        assert_eq!(document, expected);
    }
}
