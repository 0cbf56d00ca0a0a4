//! What the curves say, by the rules of the lesson: answers first, then losses.

use crate::display::{epochs, nats};
use crate::train::{LossCurves, LossRow};

/// Gaps within this share of the training loss count as none.
pub const CLOSE: f64 = 0.05;
/// Gaps beyond this share of the training loss are wide (the lesson's `>>` and `<<`).
pub const WIDE: f64 = 0.25;
/// Gaps below this many nats count as none: near zero loss every gap is a large share.
pub const CLOSE_NATS: f64 = 0.01;

/// How validation loss stands to training loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Validation more than 25 % above training.
    Overfitting,
    /// Validation 5 to 25 % above training.
    SomeOverfitting,
    /// Within 5 % of each other, or 0.01 nats.
    Close,
    /// Validation 5 to 25 % below training.
    SomeUnderfitting,
    /// Validation more than 25 % below training.
    Underfitting,
}

impl Fit {
    /// Judges a pair of losses in nats per token; `None` if they are not finite and positive.
    pub fn of(train: f64, eval: f64) -> Option<Self> {
        if !(train.is_finite() && eval.is_finite() && train > 0.0 && eval > 0.0) {
            return None;
        }
        if (eval - train).abs() <= CLOSE_NATS {
            return Some(Self::Close);
        }
        // Rounded, so that a gap of 25 % is one whatever the last bit of the division says.
        let above = ((eval - train).abs() / train * 1e9).round() / 1e9;
        Some(match (eval > train, above) {
            (_, above) if above <= CLOSE => Self::Close,
            (true, above) if above > WIDE => Self::Overfitting,
            (true, _) => Self::SomeOverfitting,
            (false, above) if above > WIDE => Self::Underfitting,
            (false, _) => Self::SomeUnderfitting,
        })
    }
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Overfitting => "overfitting",
            Self::SomeOverfitting => "some overfitting",
            Self::Close => "neither over- nor underfitting",
            Self::SomeUnderfitting => "some underfitting",
            Self::Underfitting => "underfitting",
        })
    }
}

/// What the curves say about the run and its checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The state at the last evaluation; `None` if one of the two losses is missing.
    pub fit: Option<Fit>,
    /// The best answers, by the task's metric; `None` where they were not measured.
    pub answers_best: Option<LossRow>,
    /// The lowest validation loss: it generalises best, as far as losses tell.
    pub generalises_best: Option<LossRow>,
    /// The highest ratio of validation to training loss: it memorises most. If validation is
    /// nowhere above training, the lowest training loss.
    pub memorises_most: Option<LossRow>,
    /// The same in sentences, one per line.
    pub sentences: Vec<String>,
}

impl Verdict {
    /// Judges the curves of a run.
    pub fn of(curves: &LossCurves) -> Self {
        let rows = curves.rows();
        let best = curves.best();
        let judged: Vec<&LossRow> = rows.iter().filter(|row| row.ratio().is_some()).collect();
        let last = judged.last();
        let fit = last.and_then(|row| Fit::of(row.train?, row.eval?));
        // Where none overfits, the one that knows its training rows best comes closest.
        let overfits = |row: &&LossRow| row.ratio() > Some(1.0);
        let memorises = match judged.iter().copied().filter(overfits).reduce(most_overfit) {
            Some(row) => Some((row.clone(), "validation loss highest against training loss")),
            None => judged
                .iter()
                .copied()
                .reduce(|least, row| if row.train <= least.train { row } else { least })
                .map(|row| (row.clone(), "lowest training loss; none overfits yet")),
        };

        let answers_best = curves.best_answers();
        let mut sentences = Vec::new();
        if let (Some(row), Some(metric)) = (&answers_best, &curves.metric) {
            let (label, value) = (metric.label(), row.metric.unwrap_or_default());
            let what = if metric.points.len() > 1 { "highest" } else { "the only" };
            sentences.push(format!("Answers best: {} ({what} {label}, {value:.3}).", checkpoint(row)));
            if metric.points.len() > 1 && metric.points.last().is_some_and(|last| last.1 == row.step) {
                sentences.push(format!("{label} was still rising at the end: more epochs may help."));
            }
        }
        if let (Some(fit), Some(row)) = (fit, last) {
            sentences.push(state(fit, row));
        }
        match &best {
            Some(best) => {
                let eval = best.eval.map(nats).unwrap_or_default();
                let what = match rows.iter().filter(|row| row.eval.is_some()).count() {
                    1 => format!("the only validation loss, {eval}"),
                    _ => format!("lowest validation loss, {eval}"),
                };
                match &answers_best {
                    None => {
                        sentences.push(format!("Generalises best: {} ({what}).", checkpoint(best)));
                        sentences.extend(trend(&rows, best));
                    }
                    Some(answers) => sentences.push(beside_answers(best, answers, &what)),
                }
            }
            None => sentences.push(
                "No validation losses: train with an evaluation set to see over- or underfitting."
                    .to_string(),
            ),
        }
        match &memorises {
            Some((row, why)) if judged.len() > 1 => {
                sentences.push(format!("Memorises most: {} ({why}).", checkpoint(row)));
            }
            None if best.is_some() => {
                sentences
                    .push("No training losses before an evaluation: nothing to compare with.".to_string());
            }
            _ => {}
        }
        Self {
            fit,
            answers_best,
            generalises_best: best,
            memorises_most: memorises.map(|(row, _)| row),
            sentences,
        }
    }

    /// How the thresholds are set, for the foot of a table or plot.
    pub fn thresholds() -> String {
        format!(
            "Validation within {:.0} % of training loss (or {CLOSE_NATS} nats): close; beyond: some over- or \
             underfitting; beyond {:.0} %: over- or underfitting.",
            CLOSE * 100.0,
            WIDE * 100.0
        )
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.sentences.join("\n"))
    }
}

fn most_overfit<'a>(most: &'a LossRow, row: &'a LossRow) -> &'a LossRow {
    if row.ratio() >= most.ratio() { row } else { most }
}

fn state(fit: Fit, row: &LossRow) -> String {
    let (train, eval) = (row.train.unwrap_or(f64::NAN), row.eval.unwrap_or(f64::NAN));
    let word = fit.to_string();
    let mut letters = word.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase()).into_iter().collect::<String>();
    let side = match (eval / train - 1.0) * 100.0 {
        percent if percent.abs() < 0.5 => "equal to".to_string(),
        percent if percent > 0.0 => format!("{percent:.0} % above"),
        percent => format!("{:.0} % below", -percent),
    };
    let lag = match fit {
        Fit::Underfitting | Fit::SomeUnderfitting => {
            " Training loss is a mean over its epoch, with dropout: early in a run it may stand above."
        }
        _ => "",
    };
    format!(
        "{first}{} at epoch {}: validation loss {} is {side} training loss {}.{lag}",
        letters.as_str(),
        epochs(row.epoch),
        nats(eval),
        nats(train)
    )
}

fn checkpoint(row: &LossRow) -> String {
    format!("epoch {}, checkpoint-{}", epochs(row.epoch), row.step)
}

/// What the lowest validation loss means beside the best answers.
fn beside_answers(best: &LossRow, answers: &LossRow, what: &str) -> String {
    let what = what.replacen("lowest validation", "its lowest", 1);
    match best.step.cmp(&answers.step) {
        std::cmp::Ordering::Equal => format!("Validation loss agrees: it is there at {what}."),
        std::cmp::Ordering::Less => format!(
            "Validation loss says {} ({what}): after it the model grows surer of what it says, wrong answers \
             included. The loss charges for that, the metric does not. Go by the answers.",
            checkpoint(best)
        ),
        std::cmp::Ordering::Greater => format!(
            "Validation loss says {} ({what}): it also counts how likely the other words are. Go by the \
             answers, and look at some of both.",
            checkpoint(best)
        ),
    }
}

/// What more or fewer epochs would do.
fn trend(rows: &[LossRow], best: &LossRow) -> Option<String> {
    let evals: Vec<&LossRow> = rows.iter().filter(|row| row.eval.is_some()).collect();
    let (first, last) = (evals.first()?, evals.last()?);
    if evals.len() < 2 {
        return None;
    }
    Some(if last.step == best.step {
        "Validation loss was still falling at the end: more epochs may help.".to_string()
    } else if first.step == best.step {
        "Validation loss only rose after that: a lower learning rate or more data may help.".to_string()
    } else {
        "Validation loss rose after that: later checkpoints fit the training rows more, new text less."
            .to_string()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::LogEntry;

    fn log(losses: &[(f64, f64)]) -> Vec<LogEntry> {
        let mut log = Vec::new();
        for (i, (train, eval)) in losses.iter().enumerate() {
            let (epoch, step) = ((i + 1) as f64, (i + 1) * 100);
            log.push(LogEntry { epoch, step, loss: Some(*train), ..LogEntry::default() });
            log.push(LogEntry { epoch, step, eval_loss: Some(*eval), ..LogEntry::default() });
        }
        log
    }

    fn verdict(losses: &[(f64, f64)]) -> Verdict {
        Verdict::of(&LossCurves::from_log(&log(losses)))
    }

    #[test]
    fn thresholds() {
        for (train, eval, fit) in [
            (1.0, 1.26, Fit::Overfitting),
            (1.0, 1.24, Fit::SomeOverfitting),
            (1.0, 1.06, Fit::SomeOverfitting),
            (1.0, 1.04, Fit::Close),
            (1.0, 0.96, Fit::Close),
            (1.0, 0.94, Fit::SomeUnderfitting),
            (1.0, 0.76, Fit::SomeUnderfitting),
            (1.0, 0.74, Fit::Underfitting),
            (3.2, 2.4, Fit::SomeUnderfitting),
            // Five times as high, and yet nothing: 0.008 nats apart.
            (0.002, 0.010, Fit::Close),
        ] {
            assert_eq!(Fit::of(train, eval), Some(fit), "{train} {eval}");
        }
        for (train, eval) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (-1.0, 1.0)] {
            assert_eq!(Fit::of(train, eval), None);
        }
    }

    #[test]
    fn the_checkpoints_of_a_run_that_overfits() {
        let verdict = verdict(&[(2.0, 1.8), (1.2, 1.5), (0.7, 1.9)]);
        assert_eq!(verdict.fit, Some(Fit::Overfitting));
        assert_eq!(verdict.generalises_best.as_ref().map(|row| row.step), Some(200));
        assert_eq!(verdict.memorises_most.as_ref().map(|row| row.step), Some(300));
        let text = verdict.to_string();
        assert!(text.contains("Overfitting at epoch 3: validation loss 1.9000 is 171 % above"), "{text}");
        assert!(text.contains("Generalises best: epoch 2, checkpoint-200"), "{text}");
        assert!(text.contains("Memorises most: epoch 3, checkpoint-300"), "{text}");
        assert!(text.contains("rose after that"), "{text}");
    }

    #[test]
    fn answers_go_before_losses() {
        let measured = |losses: &[(f64, f64, f64)]| {
            let mut history = log(&losses.iter().map(|(train, eval, _)| (*train, *eval)).collect::<Vec<_>>());
            let entries = history.iter_mut().filter(|entry| entry.eval_loss.is_some());
            for (entry, (_, _, f1)) in entries.zip(losses) {
                entry.other.insert("eval_f1".into(), (*f1).into());
            }
            Verdict::of(&LossCurves::from_log(&history))
        };
        let apart = measured(&[(2.0, 1.8, 0.1), (1.2, 1.5, 0.3), (0.7, 1.9, 0.4)]);
        assert_eq!(apart.answers_best.as_ref().map(|row| row.step), Some(300));
        let text = apart.to_string();
        assert!(text.starts_with("Answers best: epoch 3, checkpoint-300 (highest F1, 0.400)."), "{text}");
        assert!(
            text.contains("still rising")
                && text.contains("epoch 2, checkpoint-200 (its lowest loss, 1.5000)"),
            "{text}"
        );
        assert!(text.contains("Go by the answers.") && !text.contains("Generalises best"), "{text}");
        let same = measured(&[(2.0, 1.8, 0.1), (1.2, 1.5, 0.3), (0.7, 1.9, 0.2)]).to_string();
        assert!(same.contains("Validation loss agrees: it is there at its lowest loss, 1.5000."), "{same}");
    }

    #[test]
    fn runs_that_still_fall_or_only_rise() {
        assert!(verdict(&[(2.0, 1.8), (1.2, 1.5)]).to_string().contains("still falling"));
        assert!(verdict(&[(2.0, 1.8), (1.2, 1.9)]).to_string().contains("only rose"));
    }

    #[test]
    fn a_run_that_underfits_throughout() {
        let verdict = verdict(&[(4.1, 3.5), (3.2, 2.3)]);
        assert_eq!(verdict.fit, Some(Fit::Underfitting));
        assert_eq!(verdict.memorises_most.as_ref().map(|row| row.step), Some(200));
        assert!(verdict.to_string().contains("none overfits yet"), "{verdict}");
    }

    #[test]
    fn halves_of_a_history() {
        let only_train: Vec<LogEntry> = log(&[(2.0, 1.8)]).into_iter().filter(|e| e.loss.is_some()).collect();
        let verdict = Verdict::of(&LossCurves::from_log(&only_train));
        assert!(verdict.fit.is_none() && verdict.to_string().contains("No validation losses"));
        let only_eval: Vec<LogEntry> =
            log(&[(2.0, 1.8)]).into_iter().filter(|e| e.eval_loss.is_some()).collect();
        let verdict = Verdict::of(&LossCurves::from_log(&only_eval));
        assert!(verdict.fit.is_none() && verdict.to_string().contains("No training losses"));
        assert!(Verdict::of(&LossCurves::default()).fit.is_none());
    }
}
