//! The answer that agrees best with several that were drawn.

use std::fmt;

use crate::display::{plain, say};
use crate::error::{Error, Result};
use crate::model::{GenerationConfig, Model, generate_samples};
use crate::task::{self, Constraint, Judge, Task};

/// Several answers to one text, and the one that agrees best with them.
#[derive(Debug, Clone, PartialEq)]
pub struct Consensus {
    /// The answer with the highest mean score against those drawn: one of them, the first drawn of
    /// equals, or one that the task's judge put together ([`Judge::agreed`]).
    pub answer: String,
    /// Its mean score against those drawn, itself left out if it is one of them, by the first measure of
    /// the task's judge.
    pub agreement: f64,
    /// All answers, in the order drawn.
    pub samples: Vec<String>,
}

/// Draws `n` answers to `text` and chooses the one that agrees best with them: minimum Bayes risk
/// decoding (Kumar and Byrne, "Minimum Bayes-Risk Decoding for Statistical Machine Translation", 2004;
/// with samples: Eikema and Aziz 2020).
///
/// A model's samples `y_j` stand for what could be the row's answer. The answer that would score best on
/// average, by the judge's first measure `s`, is
///
/// ```text
/// argmax_y  1/n · Σ_j s(y, y_j)
/// ```
///
/// where `y` is one of the samples, or what the judge makes of all of them ([`Judge::agreed`]): of
/// emoji those that most samples hold, which need not stand together in any one.
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
/// assert_eq!(chosen.samples.len(), 8);
/// assert!(emoji_lab::task::purely_emoji(&chosen.answer));
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
    let Best { answer, agreement, .. } = best(&samples, &*task.judge, config.constraint.as_ref())?;
    Ok(Consensus { answer, agreement, samples })
}

/// An answer that agrees best with some.
#[derive(Debug, PartialEq)]
pub(super) struct Best {
    pub(super) answer: String,
    /// Its place among them; `None` if it is none of them.
    pub(super) place: Option<usize>,
    /// Its mean score against them, itself left out.
    pub(super) agreement: f64,
}

/// The answer with the highest mean score against `samples`, of which there is at least one; none that
/// `constraint` does not allow is put together.
pub(super) fn best(samples: &[String], judge: &dyn Judge, constraint: Option<&Constraint>) -> Result<Best> {
    let mut answers = samples.to_vec();
    answers.extend(agreed(samples, judge, constraint).filter(|agreed| !samples.contains(agreed)));
    let scores = Scores::new(&answers, samples, judge)?;
    let n = samples.len();
    let mut best = (0, f64::NEG_INFINITY);
    for answer in 0..answers.len() {
        let sum: f64 = (0..n).map(|sample| scores.of(answer, sample)).sum();
        // What differs by rounding alone is equal.
        if sum > best.1 + 1e-9 {
            best = (answer, sum);
        }
    }
    let (chosen, sum) = best;
    let place = (chosen < n).then_some(chosen);
    let agreement = match place {
        Some(place) => (sum - scores.of(place, place)) / (n - 1).max(1) as f64,
        None => sum / n as f64,
    };
    Ok(Best { answer: answers.swap_remove(chosen), place, agreement })
}

/// What the judge puts together from `samples`, if `constraint` allows it.
pub(super) fn agreed(
    samples: &[String],
    judge: &dyn Judge,
    constraint: Option<&Constraint>,
) -> Option<String> {
    judge.agreed(samples).filter(|agreed| constraint.is_none_or(|constraint| constraint.allows(agreed)))
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
        write!(f, "{answer} (agrees {:.2} with {n} drawn)", self.agreement)
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
        let chosen = |drawn: &[&str], judge: &dyn Judge| {
            let Best { answer, place, agreement } = best(&texts(drawn), judge, None).unwrap();
            assert_eq!(place, drawn.iter().position(|drawn| *drawn == answer));
            (answer, agreement)
        };
        let (answer, mean) = chosen(&["🎉", "🏖️", "🏖️🌊", "🌊🏖️☀️"], &EmojiJudge);
        assert_eq!(answer, "🏖️🌊");
        assert!((mean - (2.0 / 3.0 + 4.0 / 5.0) / 3.0).abs() < 1e-12, "{mean}");
        // The same answer twice supports itself; of equals the first.
        assert_eq!(chosen(&["🎉🎂", "🏖️", "🏖️"], &EmojiJudge), ("🏖️".into(), 0.5));
        assert_eq!(chosen(&["🎂", "🏖️"], &EmojiJudge), ("🎂🏖️".into(), 2.0 / 3.0));
        assert_eq!(chosen(&["🎂", "🏖️"], &crate::task::ExactMatch), ("🎂".into(), 0.0));
        assert_eq!(chosen(&["🎂"], &EmojiJudge).0, "🎂");
        assert_eq!(chosen(&["", "words"], &EmojiJudge).0, "");
        // One that nobody drew.
        let (answer, mean) = chosen(&["🎉🎂", "🎂🎈", "🎉🎈"], &EmojiJudge);
        assert_eq!(answer, "🎉🎂🎈");
        assert!((mean - 0.8).abs() < 1e-12, "{mean}");
        // Labels are chosen among those drawn.
        assert_eq!(chosen(&["joy", "anger", "anger"], &crate::task::ExactMatch), ("anger".into(), 0.5));
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
        let said = best(&texts(&["a", "b"]), &Lost, None).unwrap_err().to_string();
        assert!(said.starts_with("setting judge = Lost") && said.contains("NaN"), "{said}");
    }
}
