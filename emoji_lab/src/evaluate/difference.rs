//! Two evaluations of the same rows, compared row by row.

use super::bootstrap::Estimate;
use super::evaluation::Evaluation;
use crate::display::{plain_line, show_text, write_plain};
use crate::error::{Error, Result};

/// How much better the answers of one are than another's, row by row.
///
/// Most of what makes a mean uncertain is which rows were held out, and both have the same: so the
/// interval of the difference is narrower than those of the two means suggest.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Whose scores count as positive.
    pub name: String,
    /// Whose are taken away.
    pub other: String,
    /// What the score is, as in a table.
    pub label: &'static str,
    /// The mean difference of the scores with its 95 % interval.
    pub score: Estimate,
    /// Rows that `name` answers better.
    pub better: usize,
    /// Rows that it answers worse.
    pub worse: usize,
    /// Rows with the same score.
    pub equal: usize,
}

impl Evaluation {
    /// This evaluation's scores less `other`'s.
    ///
    /// # Errors
    /// [`Error::Setting`] if the two are not of the same rows in the same order by the same score.
    pub fn difference(&self, other: &Self) -> Result<Difference> {
        self.require_same_rows(other)?;
        let pairs = self.rows.iter().zip(&other.rows);
        let differences: Vec<f64> = pairs.map(|(ours, theirs)| ours.score() - theirs.score()).collect();
        let count = |which: fn(f64) -> bool| differences.iter().filter(|d| which(**d)).count();
        Ok(Difference {
            name: self.name.clone(),
            other: other.name.clone(),
            label: self.label(),
            score: Estimate::of(&differences, self.resamples, self.seed),
            better: count(|d| d > 0.0),
            worse: count(|d| d < 0.0),
            equal: count(|d| d == 0.0),
        })
    }

    /// What the score is, as in a table.
    pub(crate) fn label(&self) -> &'static str {
        self.measures.first().map_or("score", |measure| measure.label)
    }

    fn require_same_rows(&self, other: &Self) -> Result<()> {
        let help = "evaluate both on the same rows, in the same order, by the same judge";
        let error = |value: String| Err(Error::setting("other", value, help));
        if self.measures.first() != other.measures.first() {
            return error(format!("an evaluation by {}, and this one is by {}", other.label(), self.label()));
        }
        if self.rows.len() != other.rows.len() {
            return error(format!("{} rows, and this one has {}", other.rows.len(), self.rows.len()));
        }
        let differs = |i: &usize| {
            let (ours, theirs) = (&self.rows[*i], &other.rows[*i]);
            (&ours.text, &ours.expected) != (&theirs.text, &theirs.expected)
        };
        match (0..self.rows.len()).find(differs) {
            Some(row) => error(format!(
                "\"{}\" in row {row}, and this one has \"{}\"",
                other.rows[row].text, self.rows[row].text
            )),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write_plain(f, |out| {
            *out = format!(
                "{} against {}: {} {:+}, row by row; better in {} rows, worse in {}, the same in {}",
                plain_line(&self.name),
                plain_line(&self.other),
                self.label,
                self.score,
                self.better,
                self.worse,
                self.equal
            );
            Ok(())
        })
    }
}

impl Difference {
    /// Whether the interval leaves 0 out: a difference that is more than the choice of rows.
    pub fn is_clear(&self) -> bool {
        self.score.low > 0.0 || self.score.high < 0.0
    }

    /// Shows it in a notebook cell; the Rust kernel calls this.
    pub fn evcxr_display(&self) {
        show_text(&self.to_string());
    }
}
