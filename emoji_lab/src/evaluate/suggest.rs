//! A few answers that differ.

use super::consensus::{Scores, agreed};
use crate::error::{Error, Result};
use crate::model::{GenerationConfig, Model, generate_samples};
use crate::task::{self, Task};

/// Answers drawn a round.
const DRAWS: usize = 32;
/// Rounds, each at twice the temperature of the one before, until there are enough different answers.
const ROUNDS: u32 = 7;
/// The most answers that can be asked for.
const MOST: usize = 16;
const TOKENS: usize = 32;

/// `count` different answers to `text`, the best first: no two of them have the same words (emoji,
/// labels), in whatever order. There are fewer where the task has not so many.
///
/// The answers are chosen of 32 draws at temperature 1, held to the task's constraint, and what the
/// task's judge makes of all of them. The first is their [`consensus`](super::consensus); each further
/// one is the answer with which the best of those chosen scores highest on average over the draws, by the
/// judge's first measure (a greedy choice, for such sums within 1 − 1/e of the best: Nemhauser, Wolsey and
/// Fisher 1978). The likeliest answers, which a beam search finds, are often short, or one thought in
/// several forms; these are to say different things. Where the draws hold fewer than `count` different
/// answers, more are drawn at higher temperatures.
///
/// The same model, task and text give the same answers.
///
/// ```
/// use emoji_lab::prelude::*;
/// let model = load_model("embedded", &Device::Cpu)?;
/// let answers = suggest(&model, &Task::emoji(), "let's go to the beach", 3)?;
/// assert_eq!(answers.len(), 3);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// As [`generate_samples`]; [`Error::Setting`] for a `count` of 0 or above 16, or a judge that gives no
/// finite number.
pub fn suggest(model: &Model, task: &Task, text: &str, count: usize) -> Result<Vec<String>> {
    task::check_judge(&*task.judge)?;
    if !(1..=MOST).contains(&count) {
        return Err(Error::setting("count", count, format!("use 1 to {MOST}")));
    }
    let mut config =
        GenerationConfig { constraint: task.constraint.clone(), ..GenerationConfig::greedy(TOKENS) };
    let messages = task.prompt(text);
    let drawn = generate_samples(model, &messages, DRAWS, &config)?;
    let mut different = Different { task, keys: vec![], answers: vec![] };
    different.add(&drawn);
    different.add(agreed(&drawn, &*task.judge, task.constraint.as_ref()).as_slice());
    for round in 1..ROUNDS {
        if different.answers.len() >= count {
            break;
        }
        (config.temperature, config.seed) = (2f64.powi(round as i32), config.seed + 1);
        different.add(&generate_samples(model, &messages, DRAWS, &config)?);
    }
    let scores = Scores::new(&different.answers, &drawn, &*task.judge)?;
    let chosen = complementary(&scores, (different.answers.len(), drawn.len()), count);
    Ok(chosen.into_iter().map(|place| different.answers[place].clone()).collect())
}

/// Answers of which no two have the same words.
struct Different<'a> {
    task: &'a Task,
    keys: Vec<Vec<String>>,
    answers: Vec<String>,
}

impl Different<'_> {
    fn add(&mut self, answers: &[String]) {
        for answer in answers {
            let words = self.task.constraint.as_ref().and_then(|constraint| constraint.split(answer));
            let mut key: Vec<String> = match words {
                Some(words) => words.into_iter().map(str::to_string).collect(),
                None => vec![answer.trim().to_string()],
            };
            key.sort_unstable();
            if !self.keys.contains(&key) {
                self.keys.push(key);
                self.answers.push(answer.clone());
            }
        }
    }
}

/// Up to `count` of the answers, in the order in which each adds most to what the best of them score
/// against the draws; what adds the same is ordered by its own scores, then as it came.
fn complementary(scores: &Scores, (answers, draws): (usize, usize), count: usize) -> Vec<usize> {
    let mut best = vec![f64::NEG_INFINITY; draws];
    let mut chosen: Vec<usize> = vec![];
    while chosen.len() < count.min(answers) {
        let worth = |answer: usize| {
            let of = |draw: usize| scores.of(answer, draw);
            let together = (0..draws).map(|draw| of(draw).max(best[draw])).sum::<f64>();
            (together, (0..draws).map(of).sum::<f64>())
        };
        let mut next: Option<(usize, (f64, f64))> = None;
        for answer in (0..answers).filter(|answer| !chosen.contains(answer)) {
            let (together, alone) = worth(answer);
            let more = |a: f64, b: f64| a > b + 1e-9;
            if next.is_none_or(|(_, (most, most_alone))| {
                more(together, most) || (!more(most, together) && more(alone, most_alone))
            }) {
                next = Some((answer, (together, alone)));
            }
        }
        let Some((answer, _)) = next else { break };
        for (draw, best) in best.iter_mut().enumerate() {
            *best = best.max(scores.of(answer, draw));
        }
        chosen.push(answer);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::EmojiJudge;

    #[test]
    fn what_adds_most_comes_next() {
        let drawn: Vec<String> = ["🏖️🌊", "🏖️🌊", "🏖️", "🌊🏖️", "🎉🎂", "🎉"].map(String::from).into();
        let task = Task::emoji();
        let mut different = Different { task: &task, keys: vec![], answers: vec![] };
        different.add(&drawn);
        assert_eq!(different.answers, ["🏖️🌊", "🏖️", "🎉🎂", "🎉"]);
        let scores = Scores::new(&different.answers, &drawn, &EmojiJudge).unwrap();
        // The beach has most draws; then the party, though 🏖️ agrees with more of them.
        assert_eq!(complementary(&scores, (4, 6), 3), [0, 2, 1]);
        assert_eq!(complementary(&scores, (4, 6), 9).len(), 4);
    }
}
