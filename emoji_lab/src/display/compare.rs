//! The answers of the base and the tuned model side by side.

use super::table::{Align, Table};

/// One prompt and what the two models said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ComparisonRow {
    /// What was asked.
    pub prompt: String,
    /// The base model's answer.
    pub base: String,
    /// The tuned model's answer.
    pub tuned: String,
    /// The dataset's answer, if the prompt is one of its rows.
    pub expected: Option<String>,
}

/// Answers of two models to the same prompts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// One row a prompt.
    pub rows: Vec<ComparisonRow>,
}

impl Comparison {
    /// The comparison as a table; the column of expected answers only if there are any.
    pub fn table(&self) -> Table {
        let expected: Vec<&ComparisonRow> = self.rows.iter().filter(|row| row.expected.is_some()).collect();
        let mut table = Table::new("Before and after tuning")
            .column("Prompt", Align::Left)
            .column("Base model", Align::Left)
            .column("Tuned model", Align::Left);
        if !expected.is_empty() {
            table = table.column("In the dataset", Align::Left);
        }
        for row in &self.rows {
            let wanted = row.expected.clone().unwrap_or_else(|| "–".to_string());
            table = table.row([row.prompt.clone(), answer(&row.base), answer(&row.tuned), wanted]);
        }
        if !expected.is_empty() {
            let same = |said: fn(&ComparisonRow) -> &str| {
                expected
                    .iter()
                    .filter(|row| row.expected.as_deref().map(str::trim) == Some(said(row).trim()))
                    .count()
            };
            table = table.note(format!(
                "The same as in the dataset: base {} of {n}, tuned {} of {n}.",
                same(|row| &row.base),
                same(|row| &row.tuned),
                n = expected.len()
            ));
        }
        table
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

super::notebook_view!(Comparison);

fn answer(text: &str) -> String {
    if text.trim().is_empty() { "(empty)".to_string() } else { text.trim().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(base: &str, tuned: &str, expected: Option<&str>) -> ComparisonRow {
        ComparisonRow {
            prompt: "let's go to the beach".into(),
            base: base.into(),
            tuned: tuned.into(),
            expected: expected.map(String::from),
        }
    }

    #[test]
    fn answers_are_counted_against_the_dataset() {
        let comparison = Comparison {
            rows: vec![
                row("The beach <b>", "🏖️🌊", Some("🏖️🌊 ")),
                row("", "🌊", Some("🏖️")),
                row("x", "y", None),
            ],
        };
        let text = comparison.to_text();
        assert!(text.contains("base 0 of 2, tuned 1 of 2"), "{text}");
        assert!(text.contains("(empty)"));
        assert!(comparison.to_html().contains("The beach &lt;b&gt;"));
    }

    #[test]
    fn without_expected_answers_there_is_no_column_for_them() {
        let text = Comparison { rows: vec![row("a", "b", None)] }.to_text();
        assert!(!text.contains("dataset"), "{text}");
        assert!(Comparison::default().to_text().contains("Tuned model"));
    }
}
