//! The one way out to a terminal or a notebook, for text that is not ours: made plain.

use std::fmt::{self, Display};
use std::io::Write;

use super::plain;

/// For a `Display`: writes what `text` writes, made [`plain`].
pub fn write_plain(
    out: &mut fmt::Formatter<'_>,
    text: impl FnOnce(&mut String) -> fmt::Result,
) -> fmt::Result {
    let mut whole = String::new();
    text(&mut whole)?;
    out.write_str(&plain(&whole))
}

/// Prints `line` to stdout, made [`plain`]. Everything that the crate prints goes through here.
pub fn say(line: impl Display) {
    let line = line.to_string();
    let mut out = std::io::stdout().lock();
    // A closed stdout is no reason to lose a cell's work: println! would panic here.
    let _ = out.write_all(format!("{}\n", plain(&line)).as_bytes()).and_then(|()| out.flush());
}

/// `println!` for text that is not ours, or may not be: what it prints stays text.
///
/// A notebook's cell prints rows, prompts and answers with it, made [`plain`](crate::display::plain()).
///
/// ```
/// use emoji_lab::prelude::*;
/// let answer = "\u{1b}[2J🏖️";
/// say!("Model's answer: {answer}"); // Model's answer: ␛[2J🏖️
/// ```
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::display::say(::std::format_args!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    #[test]
    fn nothing_else_of_the_crate_prints() {
        let mut found = Vec::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut folders = vec![root.join("src"), root.join("numerics/src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ext| ext == "rs")
                    && !path.components().any(|part| part.as_os_str() == "testing")
                    && !path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"))
                {
                    found.extend(printing(root, &path));
                }
            }
        }
        found.sort();
        // The two ways out, and the question that the kernel is to take for one.
        assert_eq!(
            found,
            ["src/display/mod.rs: stdout()", "src/display/say.rs: stdout()", "src/hub/login.rs: stdout()"]
        );
    }

    /// What a file prints with, outside of comments and tests; tests stand at the end.
    fn printing(root: &Path, path: &Path) -> Vec<String> {
        let source = std::fs::read_to_string(path).unwrap();
        let mut lines: Vec<&str> = source.lines().collect();
        let tests =
            |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].contains("mod ") && pair[1].ends_with('{');
        lines.truncate(lines.windows(2).position(tests).unwrap_or(lines.len()));
        lines.retain(|line| !line.trim_start().starts_with("//"));
        let name = path.strip_prefix(root).unwrap().display();
        ["println!", "print!", "dbg!", "stdout()", "stderr()"]
            .iter()
            .filter(|word| lines.iter().any(|line| line.contains(**word)))
            .map(|word| format!("{name}: {word}"))
            .collect()
    }
}
