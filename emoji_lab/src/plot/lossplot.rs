//! The plot of training and validation loss.

use std::path::Path;

use super::Figure;
use super::canvas::{self, Axis, BLUE, Card, GREEN, Mark, ORANGE};

use super::scale;
use super::verdict::Verdict;
use crate::display::epochs;
use crate::error::{Error, Result};
use crate::train::{LogEntry, LossCurves, LossPoint, MetricCurve, loss_table};

/// More training losses than the plot has room for are drawn as averages.
const MAX_POINTS: usize = 300;

/// The loss curves of a run, and what they say.
#[derive(Debug, Clone, PartialEq)]
pub struct LossPlot {
    /// The picture and its text twin: the table of losses and the verdict.
    pub figure: Figure,
    /// Over- or underfitting, and which checkpoint to merge.
    pub verdict: Verdict,
}

impl LossPlot {
    /// The picture: a whole SVG document.
    pub fn svg(&self) -> &str {
        self.figure.svg()
    }

    /// Writes the picture to `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save_svg(&self, path: impl AsRef<Path>) -> Result<()> {
        self.figure.save_svg(path)
    }

    /// Shows it in a notebook cell; the Rust kernel calls this.
    pub fn evcxr_display(&self) {
        self.figure.evcxr_display();
    }
}

impl std::fmt::Display for LossPlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.figure.fmt(f)
    }
}

/// Plots training and validation loss (nats per token) against the epoch, with the verdict in words; and
/// below them the metric of the answers, where a run measured it (`predict_with_generate`).
///
/// Losses that are not finite are left out and counted below the plot.
///
/// # Errors
/// [`Error::Training`] if the history holds no loss at all that can be drawn.
pub fn plot_losses(log_history: &[LogEntry]) -> Result<LossPlot> {
    let curves = LossCurves::from_log(log_history);
    if curves.train.is_empty() && curves.eval.is_empty() {
        return Err(nothing_to_plot(log_history, &curves));
    }
    let verdict = Verdict::of(&curves);

    let train = thinned(&curves.train);
    let eval: Vec<(f64, f64)> = curves.eval.iter().map(|point| (point.epoch, point.loss)).collect();
    let all = || train.iter().chain(&eval);
    let x_range = scale::padded(all().map(|point| point.0), 0.04, 0.5);
    let y_range = scale::padded(all().map(|point| point.1), 0.10, 0.1);
    let best = curves.best().filter(|_| curves.eval.len() > 1);

    let mut legend = Vec::new();
    if !train.is_empty() {
        legend.push((Mark::Disc(BLUE), "Training".to_string()));
    }
    if !eval.is_empty() {
        legend.push((Mark::Square(ORANGE), "Validation".to_string()));
    }
    if let Some(best) = &best {
        let name = format!("Lowest validation: epoch {}, checkpoint-{}", epochs(best.epoch), best.step);
        legend.push((Mark::Ring(GREEN), name));
    }
    let mut foot = verdict.sentences.clone();
    foot.extend(curves.notes());
    if train.len() < curves.train.len() {
        foot.push(format!("{} training losses drawn as {} averages.", curves.train.len(), train.len()));
    }

    let card = Card {
        title: "Training and validation loss".to_string(),
        legend,
        // A run shorter than an epoch needs fractions; a longer one reads best in whole epochs.
        x: Axis::new("Epoch", x_range, 10, x_range.1 - x_range.0 >= 1.0),
        y: Axis::new("Loss (nats per token)", y_range, 8, false),
        foot,
    };
    let losses = card.draw(|chart| {
        canvas::curve(chart, &train, Mark::Disc(BLUE))?;
        canvas::curve(chart, &eval, Mark::Square(ORANGE))?;
        if let Some((epoch, loss)) = best.as_ref().and_then(|best| Some((best.epoch, best.eval?))) {
            canvas::ring(chart, (epoch, loss), GREEN)?;
        }
        Ok(())
    })?;

    let svg = match &curves.metric {
        Some(metric) if !metric.points.is_empty() => {
            canvas::stacked("Losses and answers", &[losses, metric_card(metric, x_range)?])
        }
        _ => losses,
    };

    let mut text = loss_table(log_history).to_text();
    for sentence in &verdict.sentences {
        text += &format!("{sentence}\n");
    }
    if verdict.fit.is_some() {
        text += &format!("{}\n", Verdict::thresholds());
    }
    Ok(LossPlot { figure: Figure { svg, text }, verdict })
}

/// The answers' metric, on the epochs of the losses.
fn metric_card(metric: &MetricCurve, x_range: (f64, f64)) -> Result<String> {
    let points: Vec<(f64, f64)> = metric.points.iter().map(|(epoch, _, value)| (*epoch, *value)).collect();
    let first_best = |best: (f64, usize, f64), point: &(f64, usize, f64)| match point.2 > best.2 {
        true => *point,
        false => best,
    };
    let best = metric.points.iter().skip(1).fold(metric.points[0], first_best);
    let mut legend = vec![(Mark::Square(ORANGE), "Answers to the held-out rows".to_string())];
    if points.len() > 1 {
        legend.push((Mark::Ring(GREEN), format!("Best: epoch {}, checkpoint-{}", epochs(best.0), best.1)));
    }
    let y_range = scale::padded(points.iter().map(|point| point.1), 0.15, 0.05);
    let card = Card {
        title: format!("{} of the answers", metric.label()),
        legend,
        x: Axis::new("Epoch", x_range, 10, x_range.1 - x_range.0 >= 1.0),
        y: Axis::new(&metric.label(), y_range, 6, false),
        foot: vec![],
    };
    card.draw(|chart| {
        canvas::curve(chart, &points, Mark::Square(ORANGE))?;
        if points.len() > 1 {
            canvas::ring(chart, (best.0, best.2), GREEN)?;
        }
        Ok(())
    })
}

fn nothing_to_plot(log_history: &[LogEntry], curves: &LossCurves) -> Error {
    if curves.skipped > 0 {
        let problem = format!("none of the {} losses in the log history is a finite number", curves.skipped);
        return Error::training(problem, "Train again with a lower learning rate.");
    }
    let problem = match log_history.len() {
        0 => "no losses to plot: the log history is empty".to_string(),
        n => format!("no losses to plot: none of the {n} log entries has a loss"),
    };
    Error::training(problem, "Call trainer.train() first, with a logging_strategy other than No.")
}

/// `(epoch, loss)`, averaged over neighbours if there are more than [`MAX_POINTS`].
fn thinned(points: &[LossPoint]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |chunk: &[LossPoint], of: fn(&LossPoint) -> f64| {
        chunk.iter().map(of).sum::<f64>() / chunk.len() as f64
    };
    points.chunks(size).map(|chunk| (mean(chunk, |p| p.epoch), mean(chunk, |p| p.loss))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(epoch: f64, step: usize, loss: f64) -> LogEntry {
        LogEntry { epoch, step, loss: Some(loss), ..LogEntry::default() }
    }

    fn eval(epoch: f64, step: usize, loss: f64) -> LogEntry {
        LogEntry { epoch, step, eval_loss: Some(loss), ..LogEntry::default() }
    }

    #[test]
    fn a_usual_run() {
        let log = [
            train(1.0, 569, 2.31),
            eval(1.0, 569, 1.75),
            train(2.0, 1138, 1.42),
            eval(2.0, 1138, 1.55),
            train(3.0, 1707, 0.98),
            eval(3.0, 1707, 1.61),
        ];
        let plot = plot_losses(&log).unwrap();
        let svg = plot.svg();
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        for words in [
            "Training and validation loss",
            "Epoch",
            "Loss (nats per token)",
            "Validation",
            "checkpoint-1138",
        ] {
            assert!(svg.contains(words), "{words}");
        }
        for color in ["#005FB8", "#C84B00"] {
            let lines = svg.lines().filter(|line| line.starts_with("<polyline") && line.contains(color));
            assert_eq!(lines.count(), 2, "the curve and its legend");
        }
        // What code-hosting pages strip, and what would break outside of this picture.
        assert!(!svg.contains("style=") && !svg.contains("<style") && !svg.contains("href"));
        let text = plot.to_string();
        assert!(text.contains("← best") && text.contains("Overfitting at epoch 3"), "{text}");
        assert!(text.contains("within 5 %") && text.contains("beyond 25 %"), "{text}");
    }

    #[test]
    fn answers_are_drawn_below_the_losses() {
        let mut log = vec![];
        for (epoch, f1) in [(1.0, 0.25), (2.0, 0.5), (3.0, 0.45)] {
            log.push(train(epoch, epoch as usize * 10, 2.0 / epoch));
            let mut entry = eval(epoch, epoch as usize * 10, 2.0);
            entry.other.insert("eval_f1".into(), f1.into());
            log.push(entry);
        }
        let plot = plot_losses(&log).unwrap();
        let svg = plot.svg();
        assert_eq!(svg.matches("<svg ").count(), 3, "two cards on a sheet");
        assert_eq!(svg.matches("</svg>").count(), 3);
        for words in
            ["F1 of the answers", "Best: epoch 2, checkpoint-20", "aria-label=\"Losses and answers\""]
        {
            assert!(svg.contains(words), "{words}");
        }
        assert!(plot.to_string().contains("Answers best: epoch 2"), "{plot}");
    }

    #[test]
    fn one_epoch_is_drawn_as_points() {
        let svg = plot_losses(&[train(1.0, 10, 2.0), eval(1.0, 10, 2.0)]).unwrap().svg().to_string();
        assert_eq!(svg.matches("<circle").count(), 1 + 1, "the point and its legend");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn degenerate_histories() {
        let odd = [
            vec![train(0.5, 1, 0.0)],
            vec![eval(0.0, 0, 5.0)],
            vec![train(1.0, 1, 1e300), train(2.0, 2, -1e300)],
            vec![train(f64::MAX, 1, f64::MAX), eval(f64::MIN, 2, f64::MIN)],
            vec![train(1.0, usize::MAX, 1.0), eval(1.0, usize::MAX, 1.0), eval(1.0, 0, 1.0)],
            vec![train(1.0, 1, 3.0), train(1.0, 1, 3.0 + 1e-15)],
            vec![train(1e9, 1, 3.0), eval(-4.0, 2, 1e-300)],
            vec![train(1.0, 1, f64::NAN), train(2.0, 2, 1.0), eval(2.0, 2, f64::INFINITY)],
        ];
        for log in odd {
            let plot = plot_losses(&log).unwrap();
            assert!(!plot.svg().contains("NaN"), "{log:?}");
        }
    }

    #[test]
    fn broken_losses_are_left_out_and_said() {
        let plot =
            plot_losses(&[train(1.0, 1, f64::NAN), train(2.0, 2, 1.0), eval(2.0, 2, f64::INFINITY)]).unwrap();
        assert!(plot.svg().contains("2 losses that are not finite numbers are left out."));
        assert!(plot.to_string().contains("2 losses that are not finite numbers are left out."));
    }

    #[test]
    fn nothing_to_plot_is_an_error_with_a_way_out() {
        let said = |log: &[LogEntry]| plot_losses(log).unwrap_err().to_string();
        assert!(said(&[]).contains("empty") && said(&[]).contains("trainer.train()"));
        assert!(said(&[LogEntry::default()]).contains("none of the 1 log entries"));
        assert!(said(&[train(1.0, 1, f64::NAN)]).contains("learning rate"));
    }

    #[test]
    fn long_histories_stay_small() {
        let log: Vec<LogEntry> =
            (1..=50_000).map(|i| train(i as f64 / 10_000.0, i, 1.0 + 1.0 / i as f64)).collect();
        let plot = plot_losses(&log).unwrap();
        assert!(plot.svg().len() < 40_000, "{}", plot.svg().len());
        assert!(plot.svg().contains("50000 training losses drawn as"));
    }

    #[test]
    fn the_picture_is_saved() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loss.svg");
        let plot = plot_losses(&[train(1.0, 10, 2.0)]).unwrap();
        plot.save_svg(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), plot.svg());
        assert!(plot.save_svg(folder.path().join("no/such/loss.svg")).is_err());
    }
}
