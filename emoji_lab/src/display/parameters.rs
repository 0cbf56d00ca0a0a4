//! What a model costs to train, part by part.

use super::table::{Align, Table};
use super::text::thousands;

/// One part of the model: the NF4 layers, the LoRA matrices, the trained embeddings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParameterRow {
    /// The part's name.
    pub name: String,
    /// Numbers it holds.
    pub parameters: u64,
    /// Whether training changes them.
    pub trainable: bool,
    /// Bytes of the weights as they are kept (NF4: codes and block scales).
    pub weight_bytes: u64,
    /// Bytes of their gradients.
    pub gradient_bytes: u64,
    /// Bytes of the optimizer's moments.
    pub optimizer_bytes: u64,
}

impl ParameterRow {
    /// Weights, gradients and optimizer together.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.gradient_bytes).saturating_add(self.optimizer_bytes)
    }
}

/// Parameters and memory, part by part, before training starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParameterReport {
    /// The parts.
    pub rows: Vec<ParameterRow>,
    /// Lines below the table, as what is not counted.
    pub notes: Vec<String>,
}

impl ParameterReport {
    /// The sum of all parts; `trainable` if any part is.
    pub fn total(&self) -> ParameterRow {
        let mut total = ParameterRow { name: "Total".to_string(), ..ParameterRow::default() };
        for row in &self.rows {
            total.parameters = total.parameters.saturating_add(row.parameters);
            total.trainable |= row.trainable;
            total.weight_bytes = total.weight_bytes.saturating_add(row.weight_bytes);
            total.gradient_bytes = total.gradient_bytes.saturating_add(row.gradient_bytes);
            total.optimizer_bytes = total.optimizer_bytes.saturating_add(row.optimizer_bytes);
        }
        total
    }

    /// Numbers that training changes.
    pub fn trainable_parameters(&self) -> u64 {
        self.rows.iter().filter(|row| row.trainable).fold(0, |sum, row| sum.saturating_add(row.parameters))
    }

    /// The report as a table.
    pub fn table(&self) -> Table {
        let total = self.total();
        let mut table = Table::new("Parameters and memory")
            .column("Part", Align::Left)
            .column("Parameters", Align::Right)
            .column("Trained", Align::Left)
            .column("Weights", Align::Right)
            .column("Gradients", Align::Right)
            .column("Optimizer", Align::Right)
            .column("Together", Align::Right);
        for row in &self.rows {
            table = table.row(cells(row, if row.trainable { "yes" } else { "no" }));
        }
        table = table.total(cells(&total, ""));
        let trained = self.trainable_parameters();
        let share = 100.0 * trained as f64 / (total.parameters as f64).max(1.0);
        table = table.note(format!(
            "Trained: {} of {} parameters ({share:.2} %).",
            thousands(trained),
            thousands(total.parameters)
        ));
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

super::notebook_view!(ParameterReport);

fn cells(row: &ParameterRow, trained: &str) -> [String; 7] {
    let bytes = |bytes: u64| if bytes == 0 { "–".to_string() } else { human_bytes(bytes) };
    [
        row.name.clone(),
        thousands(row.parameters),
        trained.to_string(),
        bytes(row.weight_bytes),
        bytes(row.gradient_bytes),
        bytes(row.optimizer_bytes),
        bytes(row.total_bytes()),
    ]
}

/// Bytes in the binary unit that suits them: `512 B`, `3.4 MiB`.
pub fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        // What would round to 1024.0 belongs to the next unit.
        if value < 1023.95 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_and_share() {
        let report = ParameterReport {
            rows: vec![
                ParameterRow {
                    name: "Linear layers (NF4)".into(),
                    parameters: 3_000_000,
                    weight_bytes: 1_500_000,
                    ..Default::default()
                },
                ParameterRow {
                    name: "LoRA A and B".into(),
                    parameters: 1_000_000,
                    trainable: true,
                    weight_bytes: 4_000_000,
                    gradient_bytes: 4_000_000,
                    optimizer_bytes: 8_000_000,
                },
            ],
            notes: vec!["Activations are not counted.".into()],
        };
        assert_eq!(report.total().total_bytes(), 17_500_000);
        let text = report.to_text();
        assert!(text.contains("Trained: 1,000,000 of 4,000,000 parameters (25.00 %)."), "{text}");
        assert!(text.contains("Activations are not counted."));
        assert!(text.contains("16.7 MiB"), "{text}");
        assert!(report.to_html().contains("LoRA A and B"));
    }

    #[test]
    fn an_empty_report_divides_by_nothing() {
        assert!(ParameterReport::default().to_text().contains("0 of 0 parameters (0.00 %)"));
    }

    #[test]
    fn bytes_read_well() {
        let shown = [0, 1_023, 1_024, 1_048_575, 1 << 20, 3_650_722_201, u64::MAX].map(human_bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "3.4 GiB", "16777216.0 TiB"]);
    }
}
