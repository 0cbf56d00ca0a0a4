//! The curves in a log history: losses, and the metric of the answers.

use super::log::LogEntry;

/// One loss that was logged.
#[derive(Debug, Clone, PartialEq)]
pub struct LossPoint {
    /// Epochs done.
    pub epoch: f64,
    /// Optimizer steps done.
    pub step: usize,
    /// Nats a token, finite.
    pub loss: f64,
    /// Steps that the loss is the mean of; 1 for an evaluation.
    pub steps: usize,
}

/// Training and validation loss at one point of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct LossRow {
    /// Epochs done.
    pub epoch: f64,
    /// Optimizer steps done: the number in `checkpoint-N`.
    pub step: usize,
    /// Mean training loss since the row before.
    pub train: Option<f64>,
    /// Validation loss.
    pub eval: Option<f64>,
    /// The metric of the answers.
    pub metric: Option<f64>,
}

impl LossRow {
    /// Validation minus training loss, nats per token.
    pub fn gap(&self) -> Option<f64> {
        Some(self.eval? - self.train?)
    }

    /// Validation over training loss; `None` too if the training loss is not positive.
    pub(crate) fn ratio(&self) -> Option<f64> {
        let train = self.train.filter(|train| *train > 0.0)?;
        Some(self.eval? / train)
    }
}

/// How good the answers were, evaluation by evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricCurve {
    /// The measure's name, as `f1`; more of it is better.
    pub name: String,
    /// Epochs done, optimizer steps done, the measure's mean.
    pub points: Vec<(f64, usize, f64)>,
}

impl MetricCurve {
    /// The measure's name as people write it.
    pub fn label(&self) -> String {
        match self.name.len() {
            0..=3 => self.name.to_uppercase(),
            _ => self.name.replace('_', " "),
        }
    }

    /// The curve of the score among the measures of a history: the first that its entries name. A
    /// file has them by the alphabet, so the usual scores go first.
    fn of(log_history: &[LogEntry]) -> Option<Self> {
        let names: Vec<&str> = log_history.iter().find_map(|entry| {
            let names: Vec<&str> = entry.metrics().collect();
            (!names.is_empty()).then_some(names)
        })?;
        let usual = ["f1", "accuracy", "exact_match"].into_iter().find(|name| names.contains(name));
        let name = usual.unwrap_or(names[0]);
        let points = log_history.iter().filter_map(|entry| {
            let value = entry.metric(name).filter(|value| value.is_finite() && entry.epoch.is_finite())?;
            Some((entry.epoch, entry.step, value))
        });
        let mut points: Vec<_> = points.collect();
        points.sort_by_key(|point| point.1);
        Some(Self { name: name.to_string(), points })
    }

    fn at(&self, step: usize) -> Option<f64> {
        self.points.iter().find(|point| point.1 == step).map(|point| point.2)
    }
}

/// The curves of a log history, in the order of the steps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LossCurves {
    /// Training losses.
    pub train: Vec<LossPoint>,
    /// Validation losses.
    pub eval: Vec<LossPoint>,
    /// How good the answers were, if they were measured (`predict_with_generate`).
    pub metric: Option<MetricCurve>,
    /// Entries left out because their loss or epoch is not a finite number.
    pub skipped: usize,
}

impl LossCurves {
    /// Takes the entries that have a `loss` or an `eval_loss`.
    pub fn from_log(log_history: &[LogEntry]) -> Self {
        let mut curves = Self { metric: MetricCurve::of(log_history), ..Self::default() };
        for entry in log_history {
            for (loss, points) in [(entry.loss, &mut curves.train), (entry.eval_loss, &mut curves.eval)] {
                match loss {
                    Some(loss) if loss.is_finite() && entry.epoch.is_finite() => {
                        points.push(LossPoint { epoch: entry.epoch, step: entry.step, loss, steps: 1 });
                    }
                    Some(_) => curves.skipped += 1,
                    None => {}
                }
            }
        }
        curves.train.sort_by_key(|point| point.step);
        curves.eval.sort_by_key(|point| point.step);
        let mut before = 0;
        for point in &mut curves.train {
            point.steps = point.step.saturating_sub(before).max(1);
            before = point.step;
        }
        curves
    }

    /// One row per evaluation; where there is none, one row per epoch.
    pub fn rows(&self) -> Vec<LossRow> {
        let mut rows = Vec::new();
        let mut train = self.train.iter().peekable();
        let mut latest = None;
        for eval in &self.eval {
            let mut since = Vec::new();
            while let Some(point) = train.next_if(|point| point.step <= eval.step) {
                since.push(point);
            }
            // Evaluations between two training entries see the one before.
            latest = mean(&since).or(latest);
            let metric = self.metric.as_ref().and_then(|metric| metric.at(eval.step));
            rows.push(LossRow {
                epoch: eval.epoch,
                step: eval.step,
                train: latest,
                eval: Some(eval.loss),
                metric,
            });
        }
        let mut rest: Vec<&LossPoint> = Vec::new();
        let mut close = |points: &mut Vec<&LossPoint>| {
            if let Some(last) = points.last() {
                rows.push(LossRow {
                    epoch: last.epoch,
                    step: last.step,
                    train: mean(points),
                    eval: None,
                    metric: None,
                });
            }
            points.clear();
        };
        // The entry that ends epoch n says n exactly or a rounding error off it.
        let running = |point: &LossPoint| (point.epoch - 1e-6).ceil();
        for point in train {
            if rest.last().is_some_and(|last| running(last) != running(point)) {
                close(&mut rest);
            }
            rest.push(point);
        }
        close(&mut rest);
        rows
    }

    /// The row with the lowest validation loss, the first of equals.
    pub fn best(&self) -> Option<LossRow> {
        self.rows()
            .into_iter()
            .filter(|row| row.eval.is_some())
            .reduce(|best, row| if row.eval < best.eval { row } else { best })
    }

    /// The row with the best answers, the first of equals; `None` where they were not measured.
    pub fn best_answers(&self) -> Option<LossRow> {
        self.rows()
            .into_iter()
            .filter(|row| row.metric.is_some())
            .reduce(|best, row| if row.metric > best.metric { row } else { best })
    }

    /// What the reader has to know about entries that are not shown.
    pub(crate) fn notes(&self) -> Vec<String> {
        match self.skipped {
            0 => Vec::new(),
            1 => vec!["1 loss that is not a finite number is left out.".to_string()],
            n => vec![format!("{n} losses that are not finite numbers are left out.")],
        }
    }
}

/// Mean over steps: an entry that stands for ten steps counts ten times.
fn mean(points: &[&LossPoint]) -> Option<f64> {
    let steps: f64 = points.iter().map(|point| point.steps as f64).sum();
    (steps > 0.0).then(|| points.iter().map(|point| point.loss * point.steps as f64).sum::<f64>() / steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn train(epoch: f64, step: usize, loss: f64) -> LogEntry {
        LogEntry { epoch, step, loss: Some(loss), ..LogEntry::default() }
    }

    fn eval(epoch: f64, step: usize, loss: f64) -> LogEntry {
        LogEntry { epoch, step, eval_loss: Some(loss), ..LogEntry::default() }
    }

    #[test]
    fn entries_by_epoch_pair_up() {
        let curves = LossCurves::from_log(&[
            train(1.0, 10, 2.0),
            eval(1.0, 10, 1.5),
            train(2.0, 20, 1.0),
            eval(2.0, 20, 1.25),
        ]);
        let rows = curves.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[1].train, rows[1].eval, rows[1].gap()), (Some(1.0), Some(1.25), Some(0.25)));
        assert_eq!(curves.best().unwrap().step, 20);
    }

    #[test]
    fn entries_by_steps_are_averaged_up_to_the_evaluation() {
        // 4 steps of 3.0, 4 of 2.0, 2 of 1.0.
        let log = [train(0.4, 4, 3.0), train(0.8, 8, 2.0), train(1.0, 10, 1.0), eval(1.0, 10, 1.5)];
        let rows = LossCurves::from_log(&log).rows();
        assert!((rows[0].train.unwrap() - 2.2).abs() < 1e-12);
    }

    #[test]
    fn evaluations_without_training_before_them() {
        let log = [eval(0.0, 0, 9.0), train(1.0, 10, 2.0), eval(1.0, 10, 1.5), eval(1.5, 15, 1.4)];
        let rows = LossCurves::from_log(&log).rows();
        assert_eq!(rows.iter().map(|row| row.train).collect::<Vec<_>>(), [None, Some(2.0), Some(2.0)]);
    }

    #[test]
    fn without_evaluations_there_is_a_row_an_epoch() {
        let log: Vec<LogEntry> = (1..=20).map(|i| train(i as f64 * 0.1, i, i as f64)).collect();
        let rows = LossCurves::from_log(&log).rows();
        assert_eq!(
            rows.iter().map(|row| (row.step, row.train)).collect::<Vec<_>>(),
            [(10, Some(5.5)), (20, Some(15.5))]
        );
    }

    #[test]
    fn broken_losses_are_counted_not_kept() {
        let log = [
            train(1.0, 1, f64::NAN),
            eval(1.0, 1, f64::INFINITY),
            train(f64::NAN, 2, 1.0),
            train(2.0, 2, 1.0),
        ];
        let curves = LossCurves::from_log(&log);
        assert_eq!((curves.train.len(), curves.eval.len(), curves.skipped), (1, 0, 3));
        assert_eq!(curves.notes(), ["3 losses that are not finite numbers are left out."]);
        assert!(LossCurves::from_log(&[]).rows().is_empty());
    }
}
