//! What an export as ONNX wrote.

use std::path::PathBuf;

use super::{FOLDER, OnnxVariant};
use crate::display::{Align, Table, human_bytes, thousands};

/// A graph with its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxFile {
    /// How its matrices are stored.
    pub variant: OnnxVariant,
    /// The graph's file in the folder `onnx`; its weights are in the file of this name and `_data`.
    pub name: &'static str,
    /// The size of the graph's file.
    pub graph_bytes: u64,
    /// The size of the weights' file.
    pub data_bytes: u64,
    /// How long both took, until they were on disk.
    pub seconds: f64,
}

impl OnnxFile {
    /// The size of both files.
    pub fn bytes(&self) -> u64 {
        self.graph_bytes + self.data_bytes
    }
}

/// What [`export_onnx`](super::export_onnx) wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxReport {
    /// The folder.
    pub dir: PathBuf,
    /// The graphs, the largest first.
    pub files: Vec<OnnxFile>,
    /// How many tokens the model reads.
    pub context: usize,
    /// What the reader of the folder should know.
    pub notes: Vec<String>,
    /// How long all of it took.
    pub seconds: f64,
}

impl OnnxReport {
    /// The report as a table.
    pub fn table(&self) -> Table {
        let mut table = Table::new("The model as ONNX")
            .column("dtype", Align::Left)
            .column("File", Align::Left)
            .column("Bytes", Align::Right)
            .column("Size", Align::Right)
            .column("Seconds", Align::Right);
        for file in &self.files {
            table = table.row([
                file.variant.to_string(),
                format!("{FOLDER}/{} and _data", file.name),
                thousands(file.bytes()),
                human_bytes(file.bytes()),
                format!("{:.1}", file.seconds),
            ]);
        }
        table = table
            .note(format!("Written to {} in {:.1} s.", self.dir.display(), self.seconds))
            .note(format!("Questions and answers of up to {} tokens.", thousands(self.context as u64)));
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

crate::display::notebook_view!(OnnxReport);
