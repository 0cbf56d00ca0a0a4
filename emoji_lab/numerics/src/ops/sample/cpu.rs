//! The reference, by sorting.

use std::collections::BTreeSet;

use candle_core::{Result, Tensor};
use candle_transformers::utils::apply_repeat_penalty;

use super::{Rule, gumbel, key, wanted, weight};
use crate::host;

/// The token that follows `seen`, given its logits `[vocab]`.
///
/// # Errors
/// If the logits are not f32 on the CPU.
pub fn next_token(logits: &Tensor, seen: &[u32], rule: &Rule) -> Result<u32> {
    let penalized =
        if rule.penalty == 1.0 { logits.clone() } else { apply_repeat_penalty(logits, rule.penalty, seen)? };
    host::read(&penalized, |logits| Ok(chosen(0.., logits, seen.len(), rule).unwrap_or(0)))
}

/// [`next_token`] where only `tokens`, ascending, can follow, given their logits: what it gives for logits
/// of −∞ for all others. `None` if no logit is a number.
pub fn next_of(tokens: &[u32], mut logits: Vec<f32>, seen: &[u32], rule: &Rule) -> Option<u32> {
    if rule.penalty != 1.0 {
        let seen: BTreeSet<u32> = seen.iter().copied().collect();
        for (_, logit) in tokens.iter().zip(&mut logits).filter(|(token, _)| seen.contains(token)) {
            *logit = if *logit >= 0.0 { *logit / rule.penalty } else { *logit * rule.penalty };
        }
    }
    chosen(tokens.iter().copied(), &logits, seen.len(), rule)
}

/// Of `tokens` with their logits, the one with the best score at place `position`.
fn chosen(tokens: impl Iterator<Item = u32>, logits: &[f32], position: usize, rule: &Rule) -> Option<u32> {
    let x: Vec<f32> = logits.iter().map(|logit| rule.scaled(*logit)).collect();
    let least = least_kept(&x, rule);
    let (mut best, mut score_of_best) = (None, f32::NEG_INFINITY);
    for (token, x) in tokens.zip(&x).filter(|(_, x)| key(**x) >= least) {
        let score = if rule.draw { x + gumbel(rule.seed, position, token) } else { *x };
        if score > score_of_best {
            (best, score_of_best) = (Some(token), score);
        }
    }
    best
}

/// The key of the least likely token that both filters keep.
fn least_kept(x: &[f32], rule: &Rule) -> u32 {
    let mut least = 0;
    if rule.top_k > 0 && rule.top_k < x.len() {
        let mut keys: Vec<u32> = x.iter().map(|x| key(*x)).collect();
        least = *keys.select_nth_unstable_by(rule.top_k - 1, |a, b| b.cmp(a)).1;
    }
    if rule.top_p < 1.0 {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let kept = x.iter().filter(|x| key(**x) >= least).map(|x| (key(*x), weight(*x, max)));
        // What weighs nothing cannot be what reaches the sum.
        let mut kept: Vec<(u32, u64)> = kept.filter(|(_, weight)| *weight > 0).collect();
        kept.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(*key));
        let mut rest = wanted(kept.iter().map(|(_, weight)| weight).sum(), rule.top_p);
        for (key, weight) in kept {
            least = key;
            if weight >= rest {
                break;
            }
            rest -= weight;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAW: Rule = Rule { draw: true, seed: 42, ..Rule::GREEDY };

    fn next(logits: &[f32], seen: &[u32], rule: &Rule) -> u32 {
        next_token(&host::tensor(logits.to_vec(), logits.len()).unwrap(), seen, rule).unwrap()
    }

    /// Tokens that the filters keep.
    fn kept(logits: &[f32], rule: &Rule) -> Vec<usize> {
        let x: Vec<f32> = logits.iter().map(|logit| rule.scaled(*logit)).collect();
        let least = least_kept(&x, rule);
        (0..x.len()).filter(|i| key(x[*i]) >= least).collect()
    }

    /// How often each token is drawn, position by position.
    fn counts(logits: &[f32], rule: &Rule, draws: usize) -> Vec<usize> {
        let mut counts = vec![0; logits.len()];
        let mut seen = vec![];
        for _ in 0..draws {
            counts[next(logits, &seen, rule) as usize] += 1;
            seen.push(0);
        }
        counts
    }

    #[test]
    fn among_some_tokens_it_is_as_if_the_others_could_not_follow() {
        let mut random = crate::rng::Philox::new(5, 0);
        let rules = [
            Rule::GREEDY,
            Rule { penalty: 1.4, ..Rule::GREEDY },
            DRAW,
            Rule { top_k: 3, top_p: 0.9, penalty: 1.4, ..DRAW },
            Rule { top_k: 64, top_p: 0.7, temperature: 2.0, ..DRAW },
        ];
        for case in 0..200 {
            let tokens: Vec<u32> = (0..300).filter(|_| random.below(9) == 0).collect();
            let logits: Vec<f32> = tokens.iter().map(|_| random.next_f32() * 12.0 - 6.0).collect();
            let seen: Vec<u32> = (0..case % 40).map(|_| random.below(300) as u32).collect();
            let mut all = vec![f32::NEG_INFINITY; 300];
            tokens.iter().zip(&logits).for_each(|(token, logit)| all[*token as usize] = *logit);
            for rule in &rules {
                let ours = next_of(&tokens, logits.clone(), &seen, rule);
                assert_eq!(ours, Some(next(&all, &seen, rule)), "{rule:?}");
            }
        }
        assert_eq!(next_of(&[4, 9], vec![f32::NAN; 2], &[], &DRAW), None);
    }

    #[test]
    fn keys_are_in_the_numbers_order() {
        let numbers = [f32::NEG_INFINITY, -3.5, -1.0, -1e-40, 0.0, 1e-40, 0.5, 7.0, f32::INFINITY];
        assert!(numbers.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert_eq!(key(DRAW.scaled(-0.0)), key(0.0));
        assert_eq!(DRAW.scaled(f32::NAN), f32::NEG_INFINITY);
    }

    #[test]
    fn the_likeliest_and_the_lowest_of_equals() {
        assert_eq!(next(&[1.0, 3.0, -2.0, 3.0], &[], &Rule::GREEDY), 1);
        assert_eq!(next(&[f32::NEG_INFINITY; 3], &[], &Rule::GREEDY), 0);
        assert_eq!(next(&[f32::NAN, -1.0, f32::NAN], &[], &DRAW), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [2.0f32, 0.5, -1.0, 1.5, 0.0, -3.0, 1.0, 2.0];
        for (rule, temperature) in [(DRAW, 1.0), (Rule { temperature: 0.5, ..DRAW }, 0.5)] {
            let n = 20_000;
            let total: f64 = logits.iter().map(|l| f64::from(*l / temperature).exp()).sum();
            let expected = logits.iter().map(|l| f64::from(*l / temperature).exp() / total * n as f64);
            let chi: f64 = counts(&logits, &rule, n)
                .iter()
                .zip(expected)
                .map(|(count, expected)| (*count as f64 - expected).powi(2) / expected)
                .sum();
            // 7 degrees of freedom: one run in a thousand is above 24.3.
            assert!(chi < 24.3, "{chi}");
        }
    }

    #[test]
    fn top_k_keeps_the_kth_and_its_equals() {
        let logits = [1.0, 5.0, 3.0, 3.0, -2.0, 4.0];
        let k = |top_k| kept(&logits, &Rule { top_k, ..DRAW });
        assert_eq!(k(1), [1]);
        assert_eq!(k(2), [1, 5]);
        assert_eq!(k(3), [1, 2, 3, 5]);
        assert_eq!(k(4), [1, 2, 3, 5]);
        assert_eq!(k(5), [0, 1, 2, 3, 5]);
        assert_eq!((k(0).len(), k(6).len(), k(600).len()), (6, 6, 6));
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        // Of 16: 1/2, 1/4, 1/8, 1/16, 1/16, not in order.
        let logits = [2.0f32, 1.0, 8.0, 1.0, 4.0].map(f32::ln);
        let p = |top_p| kept(&logits, &Rule { top_p, ..DRAW });
        assert_eq!(p(0.01), [2]);
        assert_eq!(p(0.499), [2]);
        assert_eq!(p(0.51), [2, 4]);
        assert_eq!(p(0.74), [2, 4]);
        assert_eq!(p(0.76), [0, 2, 4]);
        assert_eq!(p(0.9), [0, 1, 2, 3, 4]);
        assert_eq!(p(1.0), [0, 1, 2, 3, 4]);
        // After top_k the sum is that of what stayed: 8/12 of it are enough for 0.6.
        assert_eq!(kept(&logits, &Rule { top_k: 2, top_p: 0.6, ..DRAW }), [2]);
        assert_eq!(kept(&logits, &Rule { top_k: 2, top_p: 0.7, ..DRAW }), [2, 4]);
        assert_eq!(kept(&[1.0; 5], &Rule { top_p: 0.1, ..DRAW }), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn only_what_is_kept_is_drawn() {
        let logits = [2.0f32, 1.0, 8.0, 1.0, 4.0].map(f32::ln);
        assert_eq!(counts(&logits, &Rule { top_k: 1, ..DRAW }, 50), [0, 0, 50, 0, 0]);
        let some = counts(&logits, &Rule { top_p: 0.6, ..DRAW }, 6000);
        assert_eq!(some.iter().map(|c| usize::from(*c > 0)).collect::<Vec<_>>(), [0, 0, 1, 0, 1]);
        assert!(some[2].abs_diff(4000) < 185, "{some:?}"); // five of 36.5
    }

    #[test]
    fn draws_belong_to_seed_and_position() {
        let logits: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).sin()).collect();
        let draws =
            |seed| (0..40).map(|i| next(&logits, &vec![0; i], &Rule { seed, ..DRAW })).collect::<Vec<_>>();
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        let mut different = draws(1);
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > 20, "{different:?}");
    }

    #[test]
    fn what_was_there_before_is_penalized_once() {
        let rule = Rule { penalty: 2.0, ..Rule::GREEDY };
        assert_eq!(next(&[3.0, 2.0, 1.6], &[], &rule), 0);
        assert_eq!(next(&[3.0, 2.0, 1.6], &[0, 0], &rule), 1);
        assert_eq!(next(&[3.0, 2.0, 1.6], &[0, 1, 0], &rule), 2);
        // Below zero a penalty multiplies.
        assert_eq!(next(&[-1.0, -1.5], &[0], &rule), 1);
    }
}
