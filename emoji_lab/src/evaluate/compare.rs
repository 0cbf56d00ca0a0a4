//! Evaluations side by side.

use std::borrow::Borrow;

use super::evaluation::Evaluation;
use crate::display::{Align, Table};
use crate::error::{Error, Result};
use crate::task::Unit;

/// A table of several evaluations of the same rows, one per line under the name given: score with
/// interval, gain over the first with the interval of the row by row difference, and the means of
/// the other measures but those that count (an evaluation's own table has all). The best score is
/// marked.
///
/// # Errors
/// [`Error::Setting`] if there is none, or they are not of the same rows by the same measures.
pub fn compare_evaluations<S: AsRef<str>, E: Borrow<Evaluation>>(evaluations: &[(S, E)]) -> Result<Table> {
    let evaluations: Vec<(&str, &Evaluation)> =
        evaluations.iter().map(|(name, evaluation)| (name.as_ref(), evaluation.borrow())).collect();
    let Some(((first_name, first), others)) = evaluations.split_first() else {
        return Err(Error::setting("evaluations", "none", "give at least one, as [(\"base\", &base)]"));
    };
    for (name, other) in others {
        if other.measures != first.measures {
            let help = format!("\"{first_name}\" has other measures: evaluate all by the same judge");
            return Err(Error::setting("evaluations", name, help));
        }
    }
    let measures = &first.measures;
    let rows = first.rows.len();
    let mut table = Table::new(format!("{rows} answers each")).column("", Align::Left);
    table = table.column(format!("{} [95 %]", first.label()), Align::Right);
    if !others.is_empty() {
        table = table.column("gain [95 %]", Align::Right);
    }
    // A page is only so wide.
    let shown: Vec<usize> = (1..measures.len()).filter(|i| measures[*i].unit != Unit::Count).collect();
    for place in &shown {
        table = table.column(measures[*place].label, Align::Right);
    }
    let with_tokens = evaluations.iter().any(|(_, evaluation)| evaluation.tokens_per_answer().is_some());
    if with_tokens {
        table = table.column("tokens", Align::Right);
    }
    for (i, (name, evaluation)) in evaluations.iter().enumerate() {
        let mut cells = vec![name.to_string(), evaluation.score().to_string()];
        if i > 0 {
            cells.push(format!("{:+}", evaluation.difference(first)?.score));
        } else if !others.is_empty() {
            cells.push(String::new());
        }
        for place in &shown {
            cells.push(measures[*place].unit.show(evaluation.mean_at(*place)));
        }
        cells.extend(evaluation.tokens_per_answer().map(|tokens| Unit::Count.show(tokens)));
        table = table.row(cells);
    }
    // The first of equals is marked.
    let score = |i: &usize| evaluations[*i].1.mean_at(0);
    let best = (0..evaluations.len()).rev().max_by(|a, b| score(a).total_cmp(&score(b)));
    if let (Some(best), false) = (best, others.is_empty()) {
        table = table.highlight(best, "best");
        table = table.note(format!(
            "Gain: over {first_name}, the mean difference row by row; an interval that leaves 0 out is more than \
             the choice of rows."
        ));
    }
    Ok(table)
}
