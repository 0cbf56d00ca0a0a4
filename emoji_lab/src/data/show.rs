//! Values on a line, and blocks that a notebook shows.

use std::fmt::Display;

use crate::display::plain;

/// The longest value that is shown whole, in characters.
const WIDTH: usize = 60;

/// A value in quotes on one line, cut when long. Emoji stay as they are, unlike in `{:?}`, which
/// writes joiners and selectors as escapes.
pub(super) fn shown(value: &str) -> String {
    let mut out = String::from("\"");
    for (i, c) in value.chars().enumerate() {
        if i == WIDTH {
            out.push('…');
            break;
        }
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out.push('"');
    plain(&out).into_owned()
}

/// Gives the notebook plain text for the running cell's output.
pub(super) fn notebook_text(text: &impl Display) {
    crate::display::show_text(&text.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stay_on_a_line_and_readable() {
        assert_eq!(shown("👨‍👩‍👧\t\"❤️\\"), "\"👨‍👩‍👧\\t\\\"❤️\\\\\"");
        assert_eq!(shown(&"é".repeat(61)), format!("\"{}…\"", "é".repeat(60)));
        assert_eq!(shown("a\u{1b}\u{202e}b"), "\"a\\u{1b}⟨U+202E⟩b\"");
        assert_eq!(shown(&"é".repeat(60)), format!("\"{}\"", "é".repeat(60)));
    }
}
