//! The losses of a run, checkpoint by checkpoint.

use super::curves::{LossCurves, LossRow};
use super::log::LogEntry;
use crate::display::{Align, Table, epochs, nats, thousands};

/// Longer tables are thinned: nobody reads five hundred rows in a cell.
const MAX_ROWS: usize = 24;

/// Training and validation loss at each evaluation, the lowest validation loss marked; with the metric
/// of the answers where they were measured, and then the best answers.
///
/// Without evaluations it has one row per epoch. Losses are in nats per token.
pub fn loss_table(log_history: &[LogEntry]) -> Table {
    let curves = LossCurves::from_log(log_history);
    let rows = curves.rows();
    let best = curves.best_answers().or_else(|| curves.best());
    let best = best.filter(|_| curves.eval.len() > 1).map(|best| best.step);
    let shown = thin(&rows, best);

    let mut table = Table::new("Loss, nats per token")
        .column("Epoch", Align::Right)
        .column("Step", Align::Right)
        .column("Training", Align::Right)
        .column("Validation", Align::Right)
        .column("Gap", Align::Right);
    if let Some(metric) = &curves.metric {
        table = table.column(metric.label(), Align::Right);
    }
    for (index, row) in shown.iter().enumerate() {
        let number = |loss: Option<f64>| loss.map_or("–".to_string(), nats);
        let gap = row.gap().map_or("–".to_string(), |gap| format!("{gap:+.4}"));
        let mut cells =
            vec![epochs(row.epoch), thousands(row.step as u64), number(row.train), number(row.eval), gap];
        if curves.metric.is_some() {
            cells.push(row.metric.map_or("–".to_string(), |value| format!("{value:.3}")));
        }
        table = table.row(cells);
        if row.eval.is_some() && Some(row.step) == best {
            table = table.highlight(index, "best");
        }
    }
    if shown.len() < rows.len() {
        table = table.note(format!("{} of {} rows shown.", shown.len(), rows.len()));
    }
    curves.notes().into_iter().fold(table, Table::note)
}

/// At most [`MAX_ROWS`] rows at even distances, the last and the best among them.
fn thin(rows: &[LossRow], best: Option<usize>) -> Vec<LossRow> {
    let every = rows.len().div_ceil(MAX_ROWS).max(1);
    let kept = rows.iter().enumerate().filter(|(i, row)| {
        (rows.len() - 1 - i).is_multiple_of(every) || (row.eval.is_some() && Some(row.step) == best)
    });
    kept.map(|(_, row)| row.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: f64, step: usize, loss: Option<f64>, eval_loss: Option<f64>) -> LogEntry {
        LogEntry { epoch, step, loss, eval_loss, ..LogEntry::default() }
    }

    #[test]
    fn the_best_validation_is_marked() {
        let mut log = Vec::new();
        for (epoch, train, eval) in [(1, 2.0, 1.5), (2, 1.2, 1.25), (3, 0.9, 1.4)] {
            log.push(entry(epoch as f64, epoch * 100, Some(train), None));
            log.push(entry(epoch as f64, epoch * 100, None, Some(eval)));
        }
        let text = loss_table(&log).to_text();
        let marked: Vec<&str> = text.lines().filter(|line| line.contains("← best")).collect();
        assert_eq!(marked.len(), 1, "{text}");
        assert!(marked[0].contains("200") && marked[0].contains("1.2500") && marked[0].contains("+0.0500"));
    }

    #[test]
    fn the_best_answers_are_marked_where_they_were_measured() {
        let mut log = Vec::new();
        for (epoch, eval, f1) in [(1, 1.5, 0.2), (2, 1.25, 0.3), (3, 1.4, 0.4)] {
            let mut entry = entry(epoch as f64, epoch * 100, None, Some(eval));
            entry.other.insert("eval_f1".into(), f1.into());
            entry.other.insert("eval_distinct".into(), 1.5.into());
            log.push(entry);
        }
        let text = loss_table(&log).to_text();
        let marked: Vec<&str> = text.lines().filter(|line| line.contains("← best")).collect();
        assert!(marked.len() == 1 && marked[0].contains("300") && marked[0].contains("0.400"), "{text}");
        assert!(text.contains("  F1") && !text.contains("distinct"), "{text}");
    }

    #[test]
    fn long_runs_are_thinned_but_keep_the_best_and_the_last() {
        let log: Vec<LogEntry> = (1..=500)
            .map(|i| entry(i as f64 / 100.0, i, None, Some(if i == 333 { 0.5 } else { 1.0 })))
            .collect();
        let text = loss_table(&log).to_text();
        assert!(text.lines().count() < 35, "{text}");
        assert!(text.contains("← best") && text.contains("\n    5   500"), "{text}");
    }

    #[test]
    fn empty_and_broken_logs_give_a_table_too() {
        assert!(loss_table(&[]).to_text().contains("Validation"));
        let text = loss_table(&[entry(1.0, 1, Some(f64::NAN), Some(f64::INFINITY))]).to_text();
        assert!(text.contains("left out"), "{text}");
    }
}
