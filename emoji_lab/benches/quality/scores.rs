//! Scores of a recipe over splits and seeds, and the table of all.

use emoji_lab::prelude::*;
use emoji_lab::rng::Philox;

/// Draws of the bootstrap.
const DRAWS: usize = 2000;

/// A recipe's scores, row by row.
pub struct Scores {
    name: String,
    /// For each split, each row's sum over the seeds, and the seeds that were added.
    splits: Vec<(Vec<f64>, usize)>,
    only_emoji: Vec<f64>,
    repeats: Vec<f64>,
    trained: Vec<f64>,
    answered: Vec<f64>,
    trainable: usize,
}

impl Scores {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            splits: vec![],
            only_emoji: vec![],
            repeats: vec![],
            trained: vec![],
            answered: vec![],
            trainable: 0,
        }
    }

    pub fn begin_split(&mut self, rows: usize) {
        self.splits.push((vec![0.0; rows], 0));
    }

    pub fn add(&mut self, evaluation: &Evaluation) {
        let Some((sums, seeds)) = self.splits.last_mut() else { return };
        sums.iter_mut().zip(&evaluation.rows).for_each(|(sum, row)| *sum += row.score());
        *seeds += 1;
        self.only_emoji.extend(evaluation.mean("only_emoji"));
        self.repeats.extend(evaluation.mean("repeats"));
    }

    pub fn add_run(&mut self, trained: f64, answered: f64, trainable: usize) {
        self.trained.push(trained);
        self.answered.push(answered);
        self.trainable = trainable;
    }

    /// Each row's mean over the seeds, split after split.
    fn rows(&self) -> Vec<f64> {
        let of_split = |(sums, seeds): &(Vec<f64>, usize)| -> Vec<f64> {
            sums.iter().map(|sum| sum / (*seeds).max(1) as f64).collect()
        };
        self.splits.iter().flat_map(of_split).collect()
    }

    fn of_splits(&self) -> String {
        let means = self.splits.iter().map(|(sums, seeds)| {
            format!("{:.3}", sums.iter().sum::<f64>() / (sums.len() * seeds).max(1) as f64)
        });
        means.collect::<Vec<_>>().join(" ")
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The mean with the ends of its 95 % interval.
fn estimate(values: &[f64]) -> (f64, f64, f64) {
    let mut rng = Philox::new(42, 0);
    let n = values.len().max(1);
    let mut one = || (0..n).map(|_| values[rng.below(n as u64) as usize]).sum::<f64>() / n as f64;
    let mut means: Vec<f64> = (0..DRAWS).map(|_| one()).collect();
    means.sort_unstable_by(f64::total_cmp);
    (mean(values), means[DRAWS / 40], means[DRAWS - 1 - DRAWS / 40])
}

pub fn table(look_up: &Scores, recipes: &[Scores]) -> Table {
    let mut table = Table::new("Emoji F1 of greedy answers to held-out rows")
        .column("Recipe", Align::Left)
        .column("F1 [95 %]", Align::Right)
        .column("by split", Align::Right)
        .column("gain [95 %]", Align::Right)
        .column("only emoji", Align::Right)
        .column("repeats", Align::Right)
        .column("trained in", Align::Right)
        .column("answered in", Align::Right)
        .column("numbers trained", Align::Right);
    let first = recipes.first().map(Scores::rows).unwrap_or_default();
    for (i, scores) in std::iter::once(look_up).chain(recipes).enumerate() {
        let rows = scores.rows();
        let (mean_f1, low, high) = estimate(&rows);
        let gain = match i {
            0 | 1 => String::new(),
            _ => {
                let differences: Vec<f64> = rows.iter().zip(&first).map(|(a, b)| a - b).collect();
                let (gain, low, high) = estimate(&differences);
                format!("{gain:+.3} [{low:+.3}, {high:+.3}]")
            }
        };
        let seconds = |values: &[f64]| match values.is_empty() {
            true => String::new(),
            false => format!("{:.1} s", mean(values)),
        };
        table = table.row([
            scores.name.clone(),
            format!("{mean_f1:.3} [{low:.3}, {high:.3}]"),
            scores.of_splits(),
            gain,
            format!("{:.0} %", 100.0 * mean(&scores.only_emoji)),
            format!("{:.0} %", 100.0 * mean(&scores.repeats)),
            seconds(&scores.trained),
            seconds(&scores.answered),
            if scores.trainable > 0 { scores.trainable.to_string() } else { String::new() },
        ]);
    }
    table
}
