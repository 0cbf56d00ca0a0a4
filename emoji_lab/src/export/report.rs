//! What an export wrote.

use std::path::PathBuf;

use super::gguf_type::GgufType;
use crate::display::{Align, Table, human_bytes, thousands};

/// How much of a file is stored in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeCount {
    /// ggml's name of the type.
    pub name: String,
    /// Tensors.
    pub tensors: usize,
    /// Values in them.
    pub values: u64,
    /// Bytes they take.
    pub bytes: u64,
}

/// What [`export_gguf`](super::export_gguf) wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportReport {
    /// The file.
    pub path: PathBuf,
    /// The type that was asked for.
    pub kind: GgufType,
    /// The file's size.
    pub bytes: u64,
    /// What its tensors are stored as, the most bytes first.
    pub types: Vec<TypeCount>,
    /// The files written beside it, as `Modelfile`.
    pub beside: Vec<PathBuf>,
    /// What the reader of the file should know.
    pub notes: Vec<String>,
    /// How long it took, from the first tensor read to the last byte on disk.
    pub seconds: f64,
}

impl ExportReport {
    /// The file's size for people, as "278.1 MiB".
    pub fn size(&self) -> String {
        human_bytes(self.bytes)
    }

    /// The report as a table.
    pub fn table(&self) -> Table {
        let name = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy();
        let mut table = Table::new(format!("{name}: {} as GGUF", self.kind))
            .column("Stored as", Align::Left)
            .column("Tensors", Align::Right)
            .column("Values", Align::Right)
            .column("Size", Align::Right);
        let (mut tensors, mut values, mut bytes) = (0, 0u64, 0u64);
        for row in &self.types {
            (tensors, values, bytes) = (tensors + row.tensors, values + row.values, bytes + row.bytes);
            let cells = [row.tensors.to_string(), thousands(row.values), human_bytes(row.bytes)];
            table = table.row([row.name.clone()].into_iter().chain(cells));
        }
        let rest = self.bytes.saturating_sub(bytes);
        table = table.row(["tokenizer, settings", "", "", &human_bytes(rest)]);
        table = table.total(["Together", &tensors.to_string(), &thousands(values), &human_bytes(self.bytes)]);
        table = table.note(format!("Written to {} in {:.1} s.", self.path.display(), self.seconds));
        if !self.beside.is_empty() {
            let names: Vec<_> = self
                .beside
                .iter()
                .filter_map(|path| path.file_name())
                .map(|name| name.to_string_lossy())
                .collect();
            table = table.note(format!("Beside it: {}.", names.join(", ")));
        }
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

crate::display::notebook_view!(ExportReport);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_text() {
        let report = ExportReport {
            path: PathBuf::from("out/<script>\nEVCXR_BEGIN_CONTENT text/html\u{1b}[2J.gguf"),
            kind: GgufType::Q8_0,
            bytes: 1_500_000,
            types: vec![TypeCount { name: "Q8_0".into(), tensors: 43, values: 1_376_256, bytes: 1_462_272 }],
            beside: vec![PathBuf::from("out/Modelfile")],
            notes: vec!["<b>".into()],
            seconds: 0.25,
        };
        let text = report.to_string();
        assert!(!text.contains("EVCXR_") && !text.contains('\u{1b}'), "{text}");
        assert!(text.contains("43") && text.contains("1,376,256") && text.contains("Modelfile"), "{text}");
        let html = report.to_html();
        assert!(!html.contains("<script>") && !html.contains("<b><"), "{html}");
    }
}
