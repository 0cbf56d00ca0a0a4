//! An evaluation as people read it.

use super::evaluation::Evaluation;
use crate::display::{Align, Table, human_duration, notebook_view, thousands};
use crate::task::Unit;

/// The worst rows that are shown.
const WORST: usize = 5;

impl Unit {
    /// A mean of values of this unit.
    pub(super) fn show(self, mean: f64) -> String {
        match self {
            Self::Score => format!("{mean:.3}"),
            Self::Share => format!("{:.0} %", 100.0 * mean),
            Self::Count => format!("{mean:.1}"),
        }
    }

    fn show_interval(self, low: f64, high: f64) -> String {
        format!("{} to {}", self.show(low).trim_end_matches(" %"), self.show(high))
    }
}

impl Evaluation {
    /// The means with their intervals, a measure per row.
    pub fn table(&self) -> Table {
        let mut table = Table::new(format!("{}: {} answers", self.name, thousands(self.rows.len() as u64)))
            .column("Measure", Align::Left)
            .column("Mean", Align::Right)
            .column("95 % interval", Align::Right);
        for (place, measure) in self.measures.iter().enumerate() {
            let its = self.estimate_at(place);
            let interval = measure.unit.show_interval(its.low, its.high);
            table = table.row([measure.label.to_string(), measure.unit.show(its.mean), interval]);
        }
        if let Some(tokens) = self.tokens_per_answer() {
            table = table.row(["tokens".to_string(), Unit::Count.show(tokens)]);
        }
        let draws = thousands(self.resamples as u64);
        table.note(format!("Intervals: {draws} draws of the rows, with replacement. {}", self.time()))
    }

    /// The rows with the lowest scores.
    pub fn worst_table(&self, n: usize) -> Table {
        let mut table = Table::new("The worst rows")
            .column("Text", Align::Left)
            .column("Expected", Align::Left)
            .column("Answer", Align::Left)
            .column(self.label(), Align::Right);
        for row in self.worst(n) {
            let answer = if row.answer.trim().is_empty() { "(empty)" } else { row.answer.trim() };
            let unit = self.measures.first().map_or(Unit::Score, |measure| measure.unit);
            table = table.row([row.text.as_str(), &row.expected, answer, &unit.show(row.score())]);
        }
        table
    }

    fn time(&self) -> String {
        match self.seconds > 0.0 {
            true => {
                format!("Answered in {}.", human_duration(std::time::Duration::from_secs_f64(self.seconds)))
            }
            false => String::new(),
        }
    }

    /// Both tables as text.
    pub fn to_text(&self) -> String {
        format!("{}\n{}", self.table().to_text(), self.worst_table(WORST).to_text())
    }

    /// Both tables as HTML.
    pub fn to_html(&self) -> String {
        self.table().to_html() + &self.worst_table(WORST).to_html()
    }
}

notebook_view!(Evaluation);
