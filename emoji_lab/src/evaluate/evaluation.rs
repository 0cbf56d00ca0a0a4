//! The result: every row's answer with what it is worth, and what follows from all of them.

use super::bootstrap::Estimate;
use super::config::EvaluationConfig;
use super::questions::Question;
use crate::error::{Error, Result};
use crate::task::{Judge, Measure};

/// A row's answer, judged.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedRow {
    /// What was asked.
    pub text: String,
    /// The answer the row has.
    pub expected: String,
    /// The answer that was given.
    pub answer: String,
    /// A value for each of [`Evaluation::measures`]; the first is the score.
    pub values: Vec<f64>,
    /// Tokens of the answer, without the one that ends it; `None` if no model gave it.
    pub tokens: Option<usize>,
}

impl EvaluatedRow {
    /// The row's first value.
    pub fn score(&self) -> f64 {
        self.values.first().copied().unwrap_or(0.0)
    }
}

/// The answers of one model, or of a look-up, to some rows, and how good they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Who answered: the model's origin, or `look-up`.
    pub name: String,
    /// What each row was measured by; the first is the score.
    pub measures: Vec<Measure>,
    /// The rows in their order; there is at least one.
    pub rows: Vec<EvaluatedRow>,
    /// Seconds that the answers took.
    pub seconds: f64,
    pub(super) resamples: usize,
    pub(super) seed: u64,
}

impl Evaluation {
    /// Judges `answers`, with their tokens where a model gave them.
    pub(super) fn new(
        name: &str,
        questions: Vec<Question>,
        answers: Vec<(String, Option<usize>)>,
        seconds: f64,
        (judge, config): (&dyn Judge, &EvaluationConfig),
    ) -> Result<Self> {
        let measures = judge.measures();
        let mut rows = Vec::with_capacity(questions.len());
        for (question, (answer, tokens)) in questions.into_iter().zip(answers) {
            let values = judge.judge(&answer, &question.expected);
            if values.len() != measures.len() || values.iter().any(|value| !value.is_finite()) {
                let help = format!(
                    "it gave {values:?} for the answer \"{answer}\": it must give a finite number for each \
                     of its {} measures",
                    measures.len()
                );
                return Err(Error::setting("judge", format!("{judge:?}"), help));
            }
            let Question { text, expected, .. } = question;
            rows.push(EvaluatedRow { text, expected, answer, values, tokens });
        }
        let (resamples, seed) = (config.resamples, config.seed);
        Ok(Self { name: name.to_string(), measures, rows, seconds, resamples, seed })
    }

    /// The mean score with its 95 % interval.
    pub fn score(&self) -> Estimate {
        self.estimate_at(0)
    }

    /// The mean of the measure `name`, as `only_emoji`, with its 95 % interval; `None` if the judge has
    /// no such measure.
    pub fn estimate(&self, name: &str) -> Option<Estimate> {
        self.place(name).map(|place| self.estimate_at(place))
    }

    /// The mean of the measure `name`; `None` if the judge has no such measure.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.place(name).map(|place| self.mean_at(place))
    }

    /// Tokens an answer has on average; `None` if no model gave the answers.
    pub fn tokens_per_answer(&self) -> Option<f64> {
        let tokens: Option<usize> = self.rows.iter().map(|row| row.tokens).sum();
        Some(tokens? as f64 / self.rows.len().max(1) as f64)
    }

    /// The `n` rows with the lowest scores, the lowest first and equals in the rows' order.
    pub fn worst(&self, n: usize) -> Vec<&EvaluatedRow> {
        let mut rows: Vec<&EvaluatedRow> = self.rows.iter().collect();
        rows.sort_by(|a, b| a.score().total_cmp(&b.score()));
        rows.truncate(n);
        rows
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.measures.iter().position(|measure| measure.name == name)
    }

    pub(crate) fn mean_at(&self, place: usize) -> f64 {
        let values = self.rows.iter().filter_map(|row| row.values.get(place));
        values.sum::<f64>() / self.rows.len().max(1) as f64
    }

    pub(super) fn estimate_at(&self, place: usize) -> Estimate {
        let values: Vec<f64> = self.rows.iter().filter_map(|row| row.values.get(place).copied()).collect();
        Estimate::of(&values, self.resamples, self.seed)
    }
}
