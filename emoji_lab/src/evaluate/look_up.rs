//! Answers without any model: what a model has to beat.

use std::time::Instant;

use super::config::EvaluationConfig;
use super::evaluation::Evaluation;
use super::questions::Questions;
use super::run::asked;
use super::tf_idf::TfIdf;
use crate::error::{Error, Result};

/// Answers each of `rows` with the answer of the training row whose text is nearest to it, and judges
/// that: nearest by the cosine of their words' TF-IDF, and the first of equals.
///
/// A model that does not beat it has learnt nothing that a table of the training rows would not know.
///
/// # Errors
/// [`Error::Setting`] for settings that cannot work, or no rows in either part.
pub fn look_up<T, R>(train: &T, rows: &R, config: &EvaluationConfig) -> Result<Evaluation>
where
    T: Questions + ?Sized,
    R: Questions + ?Sized,
{
    config.validate()?;
    let (questions, judge) = asked(rows, config)?;
    let known = train.questions();
    let started = Instant::now();
    let index = TfIdf::new(known.iter().map(|row| row.text.as_str()));
    let answers = questions
        .iter()
        .map(|question| index.nearest(&question.text).map(|(row, _)| (known[row].expected.clone(), None)))
        .collect::<Option<Vec<_>>>();
    let Some(answers) = answers else {
        return Err(Error::setting("train", "no rows", "give at least one training row to look up"));
    };
    Evaluation::new("look-up", questions, answers, started.elapsed().as_secs_f64(), (&*judge, config))
}
