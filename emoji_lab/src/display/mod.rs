//! What a notebook cell shows: tables, answers side by side, tokens, progress lines.
//!
//! A view is built from plain data, has a `Display` for terminals and an `evcxr_display` that the
//! Rust kernel calls when the value stands at the end of a cell. That one prints the view twice,
//! as HTML (or SVG) and as text, and the front end takes the richest form it can show.
//!
//! The kernel keeps one output for each MIME type of a cell: of two views shown by the same cell
//! only the last is seen. One view a cell, then.
//!
//! What is shown or printed comes from datasets, models and the Hub, and is [`plain()`] on its way
//! out: [`say()`] and [`show_both`] see to it for the whole crate, and each `Display` for itself.

mod compare;
mod parameters;
mod progress;
mod say;
mod settings;
mod table;
mod text;
mod tokens;

use std::io::Write;

pub use compare::{Comparison, ComparisonRow};
pub use emoji_lab_numerics::plain::plain;
pub use parameters::{ParameterReport, ParameterRow, human_bytes};
pub use progress::{Progress, human_duration};
pub use say::say;
pub use table::{Align, Cell, Table};
pub use text::{display_width, escape_html, thousands};
pub use tokens::{TokenStrip, TokenView};

pub(crate) use emoji_lab_numerics::plain::plain_line;
pub(crate) use say::write_plain;
pub(crate) use settings::{settings_table, settings_view, shown};
pub(crate) use text::{epochs, nats, wrap};

/// Shows `html` in the notebook, with `text` for front ends that cannot.
pub fn show_both(html: &str, text: &str) {
    show(&[("text/html", html), ("text/plain", text)]);
}

/// Shows plain `text` as the cell's result.
pub fn show_text(text: &str) {
    show(&[("text/plain", text)]);
}

/// Shows the picture `svg` in the notebook, with `text` for front ends that cannot.
///
/// The type is `image/svg+xml`, not HTML: JupyterLab and nbconvert then make an image of it, whose
/// names cannot collide with the page's.
pub fn show_svg(svg: &str, text: &str) {
    show(&[("image/svg+xml", svg), ("text/plain", text)]);
}

fn show(contents: &[(&str, &str)]) {
    let mut out = std::io::stdout().lock();
    // A closed stdout is no reason to lose a cell's work: print! would panic here.
    let _ = out.write_all(content_blocks(contents).as_bytes()).and_then(|()| out.flush());
}

/// The kernel's output protocol: one block for each MIME type.
fn content_blocks(contents: &[(&str, &str)]) -> String {
    let mut blocks = String::new();
    for (mime, content) in contents {
        // A model may answer anything, the words too that end a block or the cell.
        let content = plain(content);
        let content = content.trim_end_matches('\n');
        blocks.push_str(&format!("EVCXR_BEGIN_CONTENT {mime}\n{content}\nEVCXR_END_CONTENT\n"));
    }
    blocks
}

/// Gives a view with `to_text` and `to_html` its `Display` and `evcxr_display`.
macro_rules! notebook_view {
    ($view:ty) => {
        impl std::fmt::Display for $view {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str($crate::display::plain(self.to_text().trim_end()).as_ref())
            }
        }

        impl $view {
            /// Shows it in a notebook cell; the Rust kernel calls this.
            pub fn evcxr_display(&self) {
                $crate::display::show_both(&self.to_html(), &self.to_text());
            }
        }
    };
}
pub(crate) use notebook_view;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_the_kernels_format() {
        let blocks = content_blocks(&[("text/html", "<b>x</b>"), ("text/plain", "x\n")]);
        assert_eq!(
            blocks,
            "EVCXR_BEGIN_CONTENT text/html\n<b>x</b>\nEVCXR_END_CONTENT\n\
             EVCXR_BEGIN_CONTENT text/plain\nx\nEVCXR_END_CONTENT\n"
        );
    }

    #[test]
    fn content_cannot_close_its_own_block() {
        for word in ["EVCXR_END_CONTENT", "EVCXR_PANIC_NOTIFICATION", "EVCXR_BEGIN_CONTENT text/html"] {
            for mime in ["text/plain", "text/html", "image/svg+xml"] {
                let blocks = content_blocks(&[(mime, &format!("a\n{word}\r\nb{word}"))]);
                assert_eq!(blocks.matches("EVCXR_").count(), 2, "{blocks}");
                assert!(blocks.contains("\nb") && !blocks.contains('\r'), "{blocks}");
            }
        }
    }
}
