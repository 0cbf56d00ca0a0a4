//! Any text as Markdown that shows it as it is: lines, links, cells of a table.

use crate::display::plain;
use crate::hub::is_repository_id;

/// A Hub id as a link, anything else as code; of a path its last part alone, since where files lie on
/// someone's machine is nobody else's business.
pub(super) fn link(id: &str, prefix: &str) -> String {
    if is_hub_id(id) {
        format!("[{id}](https://huggingface.co/{prefix}{id})")
    } else {
        let name = id.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(id);
        format!("`{}`", code(name))
    }
}

/// Whether a name can be a repository on the Hub: `owner/name`, and not the path of a file here.
pub(super) fn is_hub_id(name: &str) -> bool {
    is_repository_id(name)
        && ![".gguf", ".csv", ".jsonl", ".safetensors"].iter().any(|ending| name.ends_with(ending))
        && !std::path::Path::new(name).exists()
}

/// The Hub's identifier of a metric: lower-case letters, digits and underlines.
pub(super) fn metric_type(name: &str) -> String {
    let lower = name.to_lowercase();
    lower
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join("_")
}

pub(super) fn figure(value: f64) -> String {
    format!("{value:.4}")
}

pub(super) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![format!("| {} |", head.join(" | ")), format!("|{}", "---|".repeat(head.len()))];
    lines.extend(rows.map(|row| format!("| {} |", row.join(" | "))));
    lines.join("\n")
}

/// Any text as one line of Markdown that shows it as it is.
pub(super) fn line(text: &str) -> String {
    let one_line = plain(text).split_whitespace().collect::<Vec<_>>().join(" ");
    let mut out = String::new();
    for c in one_line.chars().filter(|c| !c.is_control()) {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '$' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

pub(super) fn cell(text: &str) -> String {
    line(text)
}

/// Text inside backticks: nothing can be escaped there, so what would break out goes.
pub(super) fn code(text: &str) -> String {
    plain(text)
        .chars()
        .filter(|c| !c.is_control() && *c != '`')
        .map(|c| if c == '|' { '/' } else { c })
        .collect()
}

/// One line, with the space at its end that belongs to a prompt.
pub(super) fn line_keeping_space(text: &str) -> String {
    plain(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
