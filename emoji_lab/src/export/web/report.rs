//! What was written for a page.

use std::path::PathBuf;

use crate::display::{Align, Table, human_bytes, thousands};
use crate::hub::RepositoryCard;

/// A file of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebFile {
    /// Its path in the folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// What [`export_web`](super::export_web) wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct WebReport {
    /// The folder.
    pub dir: PathBuf,
    /// The files in it that are the page's, the largest first.
    pub files: Vec<WebFile>,
    /// The library and where it came from, as "wllama 3.13.0, already there".
    pub library: String,
    /// Its `README.md`, whose first lines make a static Space of it.
    pub readme: String,
    /// What the page's maker should know.
    pub notes: Vec<String>,
    /// How long it took, downloads included.
    pub seconds: f64,
}

impl WebReport {
    /// The size of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// The report as a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new("A page with the model in it")
            .column("File", Align::Left)
            .column("Bytes", Align::Right)
            .column("Size", Align::Right);
        for file in &self.files {
            table = table.row([file.name.clone(), thousands(file.bytes), human_bytes(file.bytes)]);
        }
        let dir = self.dir.display();
        table = table
            .total(["Together", &thousands(self.bytes()), &human_bytes(self.bytes())])
            .note(format!("Written to {dir} in {:.1} s. {}.", self.seconds, self.library))
            .note(format!(
                "serve_page opens it from this kernel. Elsewhere: python3 -m http.server --directory \"{dir}\", \
                 then http://localhost:8000."
            ))
            .note("Publish it with push_to_hub and PushKind::Space, this report as its card.");
        self.notes.iter().fold(table, |table, note| table.note(note.clone()))
    }

    /// The table as text.
    pub fn to_text(&self) -> String {
        self.table().to_text()
    }

    /// The table as HTML.
    pub fn to_html(&self) -> String {
        self.table().to_html()
    }
}

/// The page pushed as a Space: `PushConfig { kind: PushKind::Space, .. }`.
impl RepositoryCard for WebReport {
    fn readme(&self, _: &str) -> String {
        self.readme.clone()
    }

    fn pictures(&self) -> Vec<(&'static str, String)> {
        vec![]
    }
}

crate::display::notebook_view!(WebReport);
