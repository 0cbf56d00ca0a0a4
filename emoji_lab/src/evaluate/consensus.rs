//! The answer that agrees best with the others.

use std::fmt;

use crate::display::{plain, say};
use crate::error::{Error, Result};
use crate::model::{GenerationConfig, Model, generate_samples};
use crate::task::{self, Judge, Task};

/// Several answers to one text, and the one that agrees best with the others.
#[derive(Debug, Clone, PartialEq)]
pub struct Consensus {
    /// The answer with the highest mean score against the others; the first drawn of equals.
    pub answer: String,
    /// That mean, by the first measure of the task's judge.
    pub agreement: f64,
    /// All answers, in the order drawn.
    pub samples: Vec<String>,
}

/// Draws `n` answers to `text` and chooses the one that agrees best with the others: minimum Bayes risk
/// decoding (Kumar and Byrne, "Minimum Bayes-Risk Decoding for Statistical Machine Translation", 2004;
/// with samples: Eikema and Aziz 2020).
///
/// A model's samples stand for what could be the row's answer. The answer `y` that would score best on
/// average, by the judge's first measure `s`, is
///
/// ```text
/// argmax_i  1/(n − 1) · Σ_{j ≠ i} s(y_i, y_j)
/// ```
///
/// `config` says how answers are drawn, as in [`generate_samples`]: its `seed` decides all of them, its
/// `constraint` holds each.
///
/// ```
/// use emoji_lab::prelude::*;
/// let task = Task::emoji();
/// let config = GenerationConfig { constraint: task.constraint.clone(), ..GenerationConfig::greedy(32) };
/// let model = load_model("embedded", &Device::Cpu)?;
/// let chosen = consensus(&model, &task, "let's go to the beach", 8, &config)?;
/// assert!(chosen.samples.contains(&chosen.answer));
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// As [`generate_samples`]; [`Error::Setting`] for `n` below 2, or a judge that gives no finite number.
pub fn consensus(
    model: &Model,
    task: &Task,
    text: &str,
    n: usize,
    config: &GenerationConfig,
) -> Result<Consensus> {
    task::check_judge(&*task.judge)?;
    if n < 2 {
        return Err(Error::setting("samples", n, "a consensus takes 2 answers or more; 16 are usual"));
    }
    let samples = generate_samples(model, &task.prompt(text), n, config)?;
    let (chosen, agreement) = best(&samples, &*task.judge)?;
    Ok(Consensus { answer: samples[chosen].clone(), agreement, samples })
}

/// The place of the answer with the highest mean score against the others, and that mean.
pub(super) fn best(samples: &[String], judge: &dyn Judge) -> Result<(usize, f64)> {
    let scores = Scores::new(samples, samples, judge)?;
    let mut best = (0, f64::NEG_INFINITY);
    for i in 0..samples.len() {
        let others = (0..samples.len()).filter(|j| *j != i).map(|j| scores.of(i, j));
        let mean = others.sum::<f64>() / (samples.len() - 1).max(1) as f64;
        // What differs by rounding alone is equal.
        if mean > best.1 + 1e-12 {
            best = (i, mean);
        }
    }
    Ok(best)
}

/// What each of some answers scores against each of others. Equal texts are judged once.
pub(super) struct Scores {
    rows: Vec<usize>,
    columns: Vec<usize>,
    values: Vec<Vec<f64>>,
}

impl Scores {
    /// # Errors
    /// [`Error::Setting`] if the judge gives no finite number.
    pub(super) fn new(answers: &[String], others: &[String], judge: &dyn Judge) -> Result<Self> {
        let ((rows, answers), (columns, others)) = (distinct(answers), distinct(others));
        let score = |answer: &&String, other: &&String| -> Result<f64> {
            let values = judge.judge(answer, other);
            match values.first().filter(|value| value.is_finite()) {
                Some(value) => Ok(*value),
                None => {
                    let help = format!(
                        "it gave {values:?} for the answer \"{answer}\": the first must be a finite number"
                    );
                    Err(Error::setting("judge", format!("{judge:?}"), help))
                }
            }
        };
        let row = |answer| others.iter().map(|other| score(answer, other)).collect();
        Ok(Self { rows, columns, values: answers.iter().map(row).collect::<Result<_>>()? })
    }

    pub(super) fn of(&self, answer: usize, other: usize) -> f64 {
        self.values[self.rows[answer]][self.columns[other]]
    }
}

/// For each text its place among the distinct ones, and those.
fn distinct(texts: &[String]) -> (Vec<usize>, Vec<&String>) {
    let mut found: Vec<&String> = vec![];
    let places = texts
        .iter()
        .map(|text| match found.iter().position(|there| *there == text) {
            Some(place) => place,
            None => {
                found.push(text);
                found.len() - 1
            }
        })
        .collect();
    (places, found)
}

impl fmt::Display for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (answer, n) = (plain(&self.answer), self.samples.len());
        write!(f, "{answer} (agrees {:.2} with the others of {n})", self.agreement)
    }
}

impl Consensus {
    /// Shows it in a notebook cell; the Rust kernel calls this.
    pub fn evcxr_display(&self) {
        say(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{EmojiJudge, Measure};

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn the_answer_that_agrees_with_most_is_chosen() {
        // Against the others: 🏖️🌊 1/2, 2/3, 0; 🏖️ 2/3, 2/3, 0; 🌊🏖️☀️ 4/5 …
        let drawn = texts(&["🎉", "🏖️", "🏖️🌊", "🌊🏖️☀️"]);
        let (chosen, mean) = best(&drawn, &EmojiJudge).unwrap();
        assert_eq!(chosen, 2);
        assert!((mean - (2.0 / 3.0 + 4.0 / 5.0) / 3.0).abs() < 1e-12, "{mean}");
        // The same answer twice supports itself; of equals the first.
        assert_eq!(best(&texts(&["🎉🎂", "🏖️", "🏖️"]), &EmojiJudge).unwrap(), (1, 0.5));
        assert_eq!(best(&texts(&["🎂", "🏖️"]), &EmojiJudge).unwrap(), (0, 0.0));
        assert_eq!(best(&texts(&["🎂"]), &EmojiJudge).unwrap().0, 0);
    }

    #[test]
    fn a_judge_that_gives_no_number_is_named() {
        #[derive(Debug)]
        struct Lost;
        impl Judge for Lost {
            fn measures(&self) -> Vec<Measure> {
                EmojiJudge.measures()
            }
            fn judge(&self, _: &str, _: &str) -> Vec<f64> {
                vec![f64::NAN]
            }
        }
        let said = best(&texts(&["a", "b"]), &Lost).unwrap_err().to_string();
        assert!(said.starts_with("setting judge = Lost") && said.contains("NaN"), "{said}");
    }
}
