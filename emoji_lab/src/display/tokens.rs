//! The tokens of one formatted example, and which of them the loss counts.

use super::plain;
use super::text::{display_width, escape_html, thousands};

/// One token of a [`TokenStrip`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenView {
    /// The token as the vocabulary spells it.
    pub text: String,
    /// Its id.
    pub id: u32,
    /// Whether the loss counts the prediction of this token.
    pub in_loss: bool,
}

/// The tokens of one example in a row, those in the loss marked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenStrip {
    /// The tokens, in order.
    pub tokens: Vec<TokenView>,
}

impl TokenStrip {
    /// From ids, their texts and the loss mask. Ends with the shortest of the three.
    pub fn new(ids: &[u32], texts: &[String], in_loss: &[bool]) -> Self {
        let tokens = ids
            .iter()
            .zip(texts)
            .zip(in_loss)
            .map(|((id, text), in_loss)| TokenView { text: text.clone(), id: *id, in_loss: *in_loss })
            .collect();
        Self { tokens }
    }

    fn summary(&self) -> String {
        let counted = self.tokens.iter().filter(|token| token.in_loss).count();
        format!(
            "{} tokens, {} of them in the loss",
            thousands(self.tokens.len() as u64),
            thousands(counted as u64)
        )
    }

    /// Text: tokens in the loss stand in `[ ]`, the others between bars.
    pub fn to_text(&self) -> String {
        let mut out = format!("{} (in brackets):\n", self.summary());
        for token in &self.tokens {
            let text = visible(&token.text);
            out += &if token.in_loss { format!("[{text}]") } else { format!("|{text}|") };
            if token.text.ends_with('\n') {
                out.push('\n');
            }
        }
        out.push('\n');
        out
    }

    /// HTML: a box for each token, its id in the tooltip. Those in the loss have a green box and
    /// bold text, the others a dashed one.
    pub fn to_html(&self) -> String {
        let boxed = |style: &str, title: &str, text: &str| {
            format!(
                "<span title=\"{title}\" style=\"display:inline-block;margin:2px 1px;padding:0 4px;\
                 border-radius:4px;color:inherit;white-space:pre;{style}\">{text}</span>"
            )
        };
        let (counted, others) = (
            "background:rgba(46,160,67,0.28);border:1px solid rgba(46,160,67,0.9)",
            "background:rgba(128,128,128,0.10);border:1px dashed rgba(128,128,128,0.8)",
        );
        let mut out = format!(
            "<div style=\"color:inherit\"><div style=\"margin:0.3em 0\">{}: {} {}</div>\n\
             <div style=\"font-family:var(--jp-code-font-family,monospace);font-size:0.95em;line-height:1.7\">\n",
            escape_html(&self.summary()),
            boxed(counted, "", "<b>in the loss</b>"),
            boxed(others, "", "context only")
        );
        for token in &self.tokens {
            let title = format!("id {}", token.id);
            let text = escape_html(&visible(&token.text));
            out += &match token.in_loss {
                true => boxed(counted, &title, &format!("<b>{text}</b>")),
                false => boxed(others, &title, &text),
            };
            if token.text.ends_with('\n') {
                out += "<br>";
            }
            out.push('\n');
        }
        out += "</div></div>\n";
        out
    }
}

super::notebook_view!(TokenStrip);

/// A token's text with its white space made visible, and what cannot be seen by itself: emoji are
/// often several tokens, of which one may be a joiner alone.
fn visible(text: &str) -> String {
    if text.is_empty() {
        return "∅".to_string();
    }
    if display_width(text) == 0 && !text.contains(['\n', '\t']) {
        return plain(text).chars().map(|c| format!("⟨U+{:04X}⟩", u32::from(c))).collect();
    }
    plain(text).replace([' ', '▁'], "·").replace('\n', "↵").replace('\t', "→")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_tell_the_mask() {
        let texts = ["<start_of_turn>", "user", "\n", " beach", "🏖️"].map(String::from);
        let strip = TokenStrip::new(&[105, 2364, 107, 11295, 9], &texts, &[false, false, false, false, true]);
        let text = strip.to_text();
        assert!(text.starts_with("5 tokens, 1 of them in the loss"), "{text}");
        assert!(text.contains("|<start_of_turn>||user||↵|\n|·beach|[🏖️]"), "{text}");
        let html = strip.to_html();
        assert!(html.contains("&lt;start_of_turn&gt;") && !html.contains("<start_of_turn>"));
        assert!(html.contains("title=\"id 9\"") && html.contains("<b>🏖️</b>"));
    }

    #[test]
    fn tokens_hide_nothing() {
        let texts = ["\u{200d}", "\u{1b}[8m", "\r", "<b>\u{202e}", "EVCXR_END_CONTENT"].map(String::from);
        let strip = TokenStrip::new(&[1, 2, 3, 4, 5], &texts, &[false; 5]);
        let text = strip.to_text();
        assert!(text.contains("|⟨U+200D⟩||␛[8m||␍||<b>⟨U+202E⟩||EVCXR\u{200b}_END_CONTENT|"), "{text}");
        let html = strip.to_html();
        assert!(html.contains("&lt;b&gt;⟨U+202E⟩") && html.contains("␛[8m") && !html.contains("EVCXR_"));
    }

    #[test]
    fn an_empty_strip_is_fine() {
        assert!(TokenStrip::default().to_text().starts_with("0 tokens"));
        let _ = TokenStrip::default().to_html();
    }
}
