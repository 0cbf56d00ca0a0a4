//! Text that is not ours (rows, prompts, answers, names of files and models) on its way to a
//! notebook or a terminal: the one way out.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::Write;

/// `text` so that it stays text wherever it is printed.
///
/// The Rust kernel reads its protocol from stdout, so every `EVCXR_` is broken by a zero-width space.
pub fn plain(text: &str) -> Cow<'_, str> {
    match text.contains("EVCXR_") {
        true => Cow::Owned(text.replace("EVCXR_", "EVCXR\u{200b}_")),
        false => Cow::Borrowed(text),
    }
}

/// Prints `line` to stdout, made [`plain`]. Everything that the crate prints goes through here.
pub fn say(line: impl Display) {
    let line = line.to_string();
    let mut out = std::io::stdout().lock();
    // A closed stdout is no reason to lose a cell's work: println! would panic here.
    let _ = writeln!(out, "{}", plain(&line)).and_then(|()| out.flush());
}
