//! The judge of emoji.

use std::collections::HashMap;

use super::emoji::{emoji_list, purely_emoji};
use super::emoji_agreement;
use super::judge::{Judge, Measure, Unit};

/// Judges emoji by which they are, not by their order.
///
/// What counts as an emoji is what Python's `emoji` 2.16 finds in a text
/// ([`emoji_list`]), so words beside them cost nothing in F1
/// and show in `only_emoji`. The measures:
///
/// | name | unit | |
/// |---|---|---|
/// | `f1` | score | [`emoji_f1`] |
/// | `first_right` | share | the answer's first emoji is the row's first |
/// | `only_emoji` | share | nothing but emoji, and at least one character |
/// | `exact` | share | the row's text, character for character |
/// | `emoji` | count | emoji in the answer |
/// | `distinct` | count | different emoji in the answer |
/// | `repeats` | share | some emoji stands in it more than once |
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EmojiJudge;

impl Judge for EmojiJudge {
    fn measures(&self) -> Vec<Measure> {
        let measure = |name, label, unit| Measure { name, label, unit };
        vec![
            measure("f1", "emoji F1", Unit::Score),
            measure("first_right", "first emoji right", Unit::Share),
            measure("only_emoji", "only emoji", Unit::Share),
            measure("exact", "exact", Unit::Share),
            measure("emoji", "emoji", Unit::Count),
            measure("distinct", "distinct", Unit::Count),
            measure("repeats", "repeats", Unit::Share),
        ]
    }

    fn judge(&self, answer: &str, expected: &str) -> Vec<f64> {
        let (said, wanted) = (emoji_list(answer), emoji_list(expected));
        let distinct = counts(&said).len();
        let share = f64::from;
        vec![
            f1(&said, &wanted),
            share(said.first().is_some_and(|first| wanted.first() == Some(first))),
            share(!answer.is_empty() && purely_emoji(answer)),
            share(answer == expected),
            said.len() as f64,
            distinct as f64,
            share(distinct < said.len()),
        ]
    }

    fn agreed(&self, answers: &[String]) -> Option<String> {
        let lists: Vec<_> = answers.iter().map(|answer| emoji_list(answer)).collect();
        let agreed = emoji_agreement::agreed(&lists).concat();
        (!agreed.is_empty()).then_some(agreed)
    }
}

/// F1 of the emoji in `answer` and in `expected` as multisets: `2 |A ∩ B| / (|A| + |B|)`, from 0
/// (none in common, or none at all) to 1 (the same emoji as often, in any order).
pub fn emoji_f1(answer: &str, expected: &str) -> f64 {
    f1(&emoji_list(answer), &emoji_list(expected))
}

fn f1(a: &[String], b: &[String]) -> f64 {
    let (in_a, in_b) = (counts(a), counts(b));
    let both: usize = in_a.iter().map(|(emoji, n)| *n.min(in_b.get(emoji).unwrap_or(&0))).sum();
    match a.len() + b.len() {
        0 => 0.0,
        all => (2 * both) as f64 / all as f64,
    }
}

fn counts(emoji: &[String]) -> HashMap<&str, usize> {
    let mut counts = HashMap::new();
    for emoji in emoji {
        *counts.entry(emoji.as_str()).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden/text/scores.jsonl");

    /// What Python's emoji 2.16.0 makes of answers and rows (`tests/python/make_scores.py`).
    #[test]
    fn values_are_pythons() {
        let lines = std::fs::read_to_string(GOLDEN).unwrap();
        let (mut checked, mut between) = (0, 0);
        for line in lines.lines() {
            let golden: serde_json::Value = serde_json::from_str(line).unwrap();
            let (answer, expected) = (golden["got"].as_str().unwrap(), golden["want"].as_str().unwrap());
            let values = EmojiJudge.judge(answer, expected);
            let measures = EmojiJudge.measures();
            assert_eq!(values.len(), measures.len());
            for (measure, value) in measures.iter().zip(&values) {
                let wanted = golden[measure.name].as_f64().unwrap();
                assert_eq!(*value, wanted, "{} of {answer:?} for {expected:?}", measure.name);
            }
            assert_eq!(values[0], emoji_f1(answer, expected));
            between += usize::from(values[0] > 0.0 && values[0] < 1.0);
            checked += 1;
        }
        assert!(checked >= 400 && between >= 100, "{checked} lines, {between} neither right nor wrong");
    }

    #[test]
    fn f1_counts_each_as_often_as_both_have_it() {
        for (answer, expected, f1) in [
            ("🏖️🌊", "🌊🏖️", 1.0),
            ("🎉🎉🎉", "🎉", 0.5),
            ("🎉🎉", "🎉🎉🎂", 0.8),
            ("the beach 🏖️!", "🏖️", 1.0),
            ("🏖", "🏖️", 0.0),
            ("", "🎉", 0.0),
            ("", "", 0.0),
        ] {
            assert_eq!(emoji_f1(answer, expected), f1, "{answer} for {expected}");
        }
    }
}
