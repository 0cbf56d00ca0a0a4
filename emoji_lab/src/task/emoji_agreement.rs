//! The emoji that several answers agree on.

use std::collections::HashMap;

/// The emoji whose mean F1 against `answers` is highest, as far as adding one after the other finds them:
/// first the one that is worth most alone, then what adds most to those chosen, until nothing adds any
/// more. They stand where the answers have them on average.
///
/// Empty if no answer has an emoji.
pub(super) fn agreed(answers: &[Vec<String>]) -> Vec<String> {
    // The second 🎉 of an answer is another thing than its first.
    type Nth<'a> = (&'a str, usize);
    let mut things: Vec<Nth> = vec![];
    // Which answers have it, and the sum of its places in them.
    let mut holders: HashMap<Nth, (Vec<usize>, usize)> = HashMap::new();
    for (answer, emoji) in answers.iter().enumerate() {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (place, emoji) in emoji.iter().enumerate() {
            let nth = seen.entry(emoji).or_insert(0);
            let thing = (emoji.as_str(), *nth);
            *nth += 1;
            let (answers, places) = holders.entry(thing).or_default();
            if answers.is_empty() {
                things.push(thing);
            }
            answers.push(answer);
            *places += place;
        }
    }
    let mut chosen: Vec<Nth> = vec![];
    let mut common = vec![0usize; answers.len()];
    let mut best = 0.0;
    loop {
        let size = chosen.len() + 1;
        let score = |common: &[usize]| -> f64 {
            let f1 =
                |(both, answer): (&usize, &Vec<String>)| (2 * both) as f64 / (size + answer.len()) as f64;
            common.iter().zip(answers).map(f1).sum()
        };
        let mut next: Option<(Nth, Vec<usize>, f64)> = None;
        for &(emoji, nth) in &things {
            // In order: an answer holds a second one only where it holds a first.
            let follows = nth == 0 || chosen.contains(&(emoji, nth - 1));
            if chosen.contains(&(emoji, nth)) || !follows {
                continue;
            }
            let mut with = common.clone();
            holders[&(emoji, nth)].0.iter().for_each(|&answer| with[answer] += 1);
            let score = score(&with);
            // What differs by rounding alone is equal.
            if next.as_ref().is_none_or(|(_, _, most)| score > most + 1e-12) {
                next = Some(((emoji, nth), with, score));
            }
        }
        match next {
            Some((thing, with, score)) if score > best + 1e-12 => {
                chosen.push(thing);
                (common, best) = (with, score);
            }
            _ => break,
        }
    }
    let place = |thing: &Nth| {
        let (answers, places) = &holders[thing];
        *places as f64 / answers.len() as f64
    };
    chosen.sort_by(|a, b| place(a).total_cmp(&place(b)));
    chosen.into_iter().map(|(emoji, _)| emoji.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{EmojiJudge, Judge, emoji_f1};
    use crate::rng::Philox;

    fn of(answers: &[&str]) -> String {
        EmojiJudge.agreed(&answers.iter().map(|answer| answer.to_string()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn what_most_answers_hold_is_said_where_they_have_it() {
        assert_eq!(of(&["🏖️🌊", "🏖️☀️", "🌊🎉", "🏖️🌊🎂"]), "🏖️🌊");
        // No answer is both, and it agrees better than any of them.
        assert_eq!(of(&["🎉🎂", "🎂🎈", "🎉🎈"]), "🎉🎂🎈");
        // As often as they have it.
        assert_eq!(of(&["😂😂", "😂😂😂", "😂😂"]), "😂😂");
        // Words beside them do not count.
        assert_eq!(of(&["to the beach 🏖️", "🏖️", ""]), "🏖️");
        let none: [String; 2] = ["".into(), "words".into()];
        assert_eq!(EmojiJudge.agreed(&none), None);
    }

    #[test]
    fn it_is_worth_what_the_best_of_all_sets_is_but_for_little() {
        let (emoji, mut rng) = (["🎉", "🎂", "🎈", "🏖️"], Philox::new(3, 0));
        let (mut found, mut most) = (0.0, 0.0);
        for _ in 0..60 {
            let answers: Vec<String> = (0..5)
                .map(|_| (0..1 + rng.below(3)).map(|_| emoji[rng.below(4) as usize]).collect())
                .collect();
            let worth = |answer: &str| answers.iter().map(|other| emoji_f1(answer, other)).sum::<f64>();
            // All multisets with up to three of each.
            let best = (0..256usize).map(|code| {
                let times = |i: u32| emoji[i as usize].repeat(code / 4usize.pow(i) % 4);
                worth(&(0..4).map(times).collect::<String>())
            });
            let best = best.fold(0.0, f64::max);
            let ours = worth(&EmojiJudge.agreed(&answers).unwrap());
            assert!(answers.iter().all(|answer| ours >= worth(answer) - 0.3), "{answers:?}");
            (found, most) = (found + ours, most + best);
        }
        assert!(found > 0.99 * most && found <= most + 1e-9, "{found} of {most}");
    }
}
