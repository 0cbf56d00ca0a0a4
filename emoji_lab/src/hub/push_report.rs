//! What a push did, shown as text and in a notebook.

use std::fmt::{self, Write};
use std::path::PathBuf;

use super::progress::bytes;
use super::upload::{FileState, PushedFile, listing};
use crate::display::{Align, Table, escape_html, show_both, write_plain};

/// What [`push_to_hub`](super::push_to_hub) did, or would do.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// `owner/name`.
    pub repo_id: String,
    /// The repository's page.
    pub url: String,
    /// Whether the repository is private.
    pub private: bool,
    /// The commit that holds the files; `None` after a dry run.
    pub commit: Option<String>,
    /// The files.
    pub files: Vec<PushedFile>,
    /// Files that the repository has and the folder does not; they stay.
    pub others: Vec<String>,
    /// The card, as it is in `README.md`.
    pub card: String,
    /// The folder that a dry run wrote.
    pub dry_run: Option<PathBuf>,
}

impl PushReport {
    pub(super) fn headline(&self) -> String {
        let visible = if self.private { "private" } else { "public" };
        let size = |state: Option<FileState>| {
            let chosen = self.files.iter().filter(|file| state.is_none_or(|state| file.state == state));
            let (count, total) = chosen.fold((0, 0), |(n, total), file| (n + 1, total + file.size));
            format!("{count} {}, {}", if count == 1 { "file" } else { "files" }, bytes(total))
        };
        match (&self.commit, &self.dry_run) {
            (Some(commit), _) if self.files.iter().any(|file| file.state == FileState::Sent) => format!(
                "Pushed to {} ({visible}) as commit {}: {}.",
                self.url,
                commit.get(..8).unwrap_or(commit),
                size(Some(FileState::Sent))
            ),
            (Some(_), _) => format!("{} ({visible}) has all of it already: nothing was sent.", self.url),
            (None, _) => {
                format!(
                    "Dry run, nothing was sent. A push would send to {} ({visible}): {}.",
                    self.repo_id,
                    size(None)
                )
            }
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.others.is_empty() {
            notes.push(format!(
                "In the repository, and not in the folder (they stay): {}.",
                self.others.join(", ")
            ));
        }
        if let Some(dir) = &self.dry_run {
            notes.push(format!("The card and this list are in {}.", dir.display()));
        }
        notes
    }

    /// Shows itself in a notebook: HTML, and the same as plain text.
    pub fn evcxr_display(&self) {
        let mut table = Table::new(self.headline())
            .column("File", Align::Left)
            .column("Size", Align::Right)
            .column("", Align::Left);
        for file in &self.files {
            let state = match file.state {
                FileState::Planned => "would be sent",
                FileState::Sent => "sent",
                FileState::Unchanged => "unchanged",
            };
            table = table.row([file.path.clone(), bytes(file.size), state.to_string()]);
        }
        for note in self.notes() {
            table = table.note(note);
        }
        let html = format!(
            "{}<details><summary>Model card (README.md)</summary>\
             <pre dir=\"auto\" style=\"white-space:pre-wrap\">{}</pre></details>",
            table.to_html(),
            escape_html(&self.card)
        );
        show_both(&html, &self.to_string());
    }
}

impl fmt::Display for PushReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, |f| {
            writeln!(f, "{}\n{}", self.headline(), listing(&self.files))?;
            for note in self.notes() {
                writeln!(f, "{note}")?;
            }
            write!(f, "\nModel card (README.md):\n{}", self.card.trim_end())
        })
    }
}
