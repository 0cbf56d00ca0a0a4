//! Text in a monospace grid, and text inside HTML.

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::plain;

/// Columns that `text` takes in a terminal: 2 for an emoji, whatever it is composed of.
pub fn display_width(text: &str) -> usize {
    text.graphemes(true).map(cluster_width).sum()
}

/// A cluster is one picture: a family or a skin tone is as wide as a single face.
fn cluster_width(cluster: &str) -> usize {
    UnicodeWidthStr::width(cluster).min(2)
}

/// `text` made [`plain`], with the five characters that mean something in HTML written as entities.
pub fn escape_html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// An integer with a comma at every thousand: 268,098,176.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// [`plain`] text with spaces for line breaks and tabs, which would break a grid.
pub(crate) fn single_line(text: &str) -> String {
    plain(text).replace(['\n', '\t'], " ")
}

/// Whether `text` has letters that are written from right to left.
pub(super) fn has_rtl(text: &str) -> bool {
    text.chars().any(|c| {
        matches!(c,
            '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{fefe}'
            | '\u{10800}'..='\u{10fff}' | '\u{1e800}'..='\u{1efff}')
    })
}

/// Lines of at most `width` columns, broken at spaces where there are any.
///
/// Line breaks in `text` are kept. A word that is longer than a line is cut between two
/// characters as people see them, so an emoji stays whole.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(2);
    let mut lines = Vec::new();
    for paragraph in plain(text).lines() {
        let (mut line, mut used) = (String::new(), 0);
        for word in single_line(paragraph).split_word_bounds() {
            let columns = display_width(word);
            if used + columns > width && used > 0 {
                lines.push(line.trim_end().to_string());
                (line, used) = (String::new(), 0);
            }
            if used == 0 && word.trim().is_empty() && !lines.is_empty() {
                continue;
            }
            if columns <= width {
                line.push_str(word);
                used += columns;
                continue;
            }
            for cluster in word.graphemes(true) {
                let columns = cluster_width(cluster);
                if used + columns > width {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push_str(cluster);
                used += columns;
            }
        }
        lines.push(line.trim_end().to_string());
    }
    if lines.is_empty() {
        lines.push(String::new());
    }
    lines
}

/// A loss as it is written everywhere.
pub(crate) fn nats(loss: f64) -> String {
    if loss.abs() < 1e6 { format!("{loss:.4}") } else { format!("{loss:.3e}") }
}

/// An epoch: `3`, or `0.25` inside one.
pub(crate) fn epochs(epoch: f64) -> String {
    let rounded = (epoch * 100.0).round() / 100.0;
    if rounded.fract() == 0.0 { format!("{rounded:.0}") } else { format!("{rounded:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_of_emoji_and_wide_characters() {
        for (text, width) in [
            ("", 0),
            ("abc", 3),
            ("é", 1),
            ("e\u{301}", 1),
            ("日本", 4),
            ("🏖", 1), // text presentation without a variation selector
            ("🏖️", 2),
            ("🌊", 2),
            ("👍🏽", 2),
            ("👨‍👩‍👧‍👦", 2),
            ("🇫🇷", 2),
            ("🇫🇷🇩🇪", 4),
            ("1️⃣", 2),
            ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", 2),
            ("go 🏖️!", 6),
        ] {
            assert_eq!(display_width(text), width, "{text:?}");
        }
    }

    #[test]
    fn html_is_escaped() {
        assert_eq!(
            escape_html("<script>alert('&\"')</script> 😀"),
            "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt; 😀"
        );
    }

    #[test]
    fn what_hides_is_seen_in_html_and_in_a_grid() {
        assert_eq!(escape_html("\u{202e}<\u{1b}"), "⟨U+202E⟩&lt;␛");
        assert_eq!(single_line("a\nb\tc\rd\u{2028}e"), "a b c␍d⟨U+2028⟩e");
        assert_eq!(wrap("true\rfake\r\nEVCXR_END_CONTENT", 40), ["true␍fake", "EVCXR\u{200b}_END_CONTENT"]);
        assert!(has_rtl("go שלום") && has_rtl("سلام") && !has_rtl("go 日本 🏖️ é \u{feff}"));
    }

    #[test]
    fn thousands_have_commas() {
        let shown = [0, 999, 1_000, 268_098_176, u64::MAX].map(thousands);
        assert_eq!(shown, ["0", "999", "1,000", "268,098,176", "18,446,744,073,709,551,615"]);
    }

    #[test]
    fn wrapping_keeps_words_and_emoji_whole() {
        assert_eq!(wrap("let us go to the beach", 10), ["let us go", "to the", "beach"]);
        assert_eq!(wrap("", 10), [""]);
        assert_eq!(wrap("a\n\nb", 10), ["a", "", "b"]);
        let family = "👨‍👩‍👧‍👦";
        assert_eq!(wrap(&family.repeat(3), 4), [family.repeat(2), family.to_string()]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        for line in wrap(&"🌊🏖️ beach\tday ".repeat(30), 17) {
            assert!(display_width(&line) <= 17, "{line:?}");
        }
    }

    #[test]
    fn epochs_read_well() {
        assert_eq!([1.0, 0.25, 2.9999, 0.333].map(epochs), ["1", "0.25", "3", "0.33"]);
    }
}
