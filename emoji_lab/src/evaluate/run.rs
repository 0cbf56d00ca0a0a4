//! From rows to an evaluation.

use std::sync::Arc;
use std::time::Instant;

use super::config::EvaluationConfig;
use super::consensus::{Best, best};
use super::evaluation::Evaluation;
use super::questions::{Question, Questions};
use crate::error::{Error, Result};
use crate::model::{Model, answer_text, answers, samples};
use crate::task::{self, Judge};

/// Asks `model` every row and judges its answers.
///
/// Questions are put as in training, the row's answer left out; many are answered side by
/// side ([`generate_batch`](crate::model::generate_batch)). With
/// [`samples`](EvaluationConfig::samples) above 1 a row's answer is the consensus of so many draws.
///
/// # Errors
/// [`Error::Setting`] for settings that cannot work, no rows, or a row whose text leaves no room for an
/// answer; [`Error::Model`] if the chat template refuses a row.
pub fn evaluate<R>(model: &Model, rows: &R, config: &EvaluationConfig) -> Result<Evaluation>
where
    R: Questions + ?Sized,
{
    config.validate()?;
    let (questions, judge) = asked(rows, config)?;
    let conversations: Vec<_> = questions.iter().map(|question| question.messages.clone()).collect();
    let started = Instant::now();
    let answers = match config.samples {
        1 => {
            let said = |tokens: &Vec<u32>| Ok((answer_text(model, tokens)?, Some(tokens.len())));
            answers(model, &conversations, &config.generation)?
                .iter()
                .map(said)
                .collect::<Result<Vec<_>>>()?
        }
        n => {
            let drawn = samples(model, &conversations, n, &config.generation)?;
            drawn.iter().map(|of_row| agreed(model, of_row, &*judge, config)).collect::<Result<Vec<_>>>()?
        }
    };
    let seconds = started.elapsed().as_secs_f64();
    Evaluation::new(&model.origin, questions, answers, seconds, (&*judge, config))
}

/// The answer that agrees best with those drawn for a row, and its tokens.
fn agreed(
    model: &Model,
    drawn: &[Vec<u32>],
    judge: &dyn Judge,
    config: &EvaluationConfig,
) -> Result<(String, Option<usize>)> {
    let texts = drawn.iter().map(|tokens| answer_text(model, tokens)).collect::<Result<Vec<_>>>()?;
    let Best { answer, place, .. } = best(&texts, judge, config.generation.constraint.as_ref())?;
    let tokens = match place {
        Some(place) => drawn[place].len(),
        None => model.tokenizer.encode(&answer)?.len(),
    };
    Ok((answer, Some(tokens)))
}

/// Judges answers that came from elsewhere; `name` says from where.
///
/// # Errors
/// [`Error::Setting`] for settings that cannot work, no rows, or another number of answers than of
/// rows.
pub fn judge_answers<R, S>(
    name: impl Into<String>,
    rows: &R,
    answers: &[S],
    config: &EvaluationConfig,
) -> Result<Evaluation>
where
    R: Questions + ?Sized,
    S: AsRef<str>,
{
    config.validate()?;
    let (questions, judge) = asked(rows, config)?;
    if questions.len() != answers.len() {
        let help = format!("there are {} rows; give an answer for each, in their order", questions.len());
        return Err(Error::setting("answers", format!("{} answers", answers.len()), help));
    }
    let answers = answers.iter().map(|answer| (answer.as_ref().to_string(), None)).collect();
    Evaluation::new(&name.into(), questions, answers, 0.0, (&*judge, config))
}

/// The rows' questions, of which there must be some, and what their answers are judged by.
pub(super) fn asked<R: Questions + ?Sized>(
    rows: &R,
    config: &EvaluationConfig,
) -> Result<(Vec<Question>, Arc<dyn Judge>)> {
    let questions = rows.questions();
    if questions.is_empty() {
        return Err(Error::setting("rows", "no rows", "give at least one row to evaluate on"));
    }
    let judge = config.judge.clone().unwrap_or_else(|| rows.judge());
    task::check_judge(&*judge)?;
    Ok((questions, judge))
}
