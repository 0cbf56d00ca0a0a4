//! Plots that show what NF4, LoRA and the chat template do. All take plain numbers.

use super::Figure;
use super::canvas::{self, Axis, BLUE, Card, Mark, ORANGE};
use super::scale;
use crate::display::{Align, Table, thousands};
use crate::error::{Error, Result};

/// Histogram of weights with a line at each quantisation level.
///
/// `weights` are divided by the largest magnitude of their block, so they lie in -1..1 as
/// `levels` do: the 16 values that NF4 can give back. The text twin says how many weights fall
/// on each level.
///
/// # Errors
/// [`Error::Setting`] if either holds no finite number.
pub fn plot_weight_histogram(weights: &[f32], levels: &[f32]) -> Result<Figure> {
    let weights = finite("weights", weights.iter().map(|w| f64::from(*w)))?;
    let mut levels = finite("levels", levels.iter().map(|l| f64::from(*l)))?;
    levels.sort_by(f64::total_cmp);

    let range = scale::padded(weights.iter().chain(&levels).copied(), 0.02, 0.5);
    let bins = histogram(&weights, range, 120);
    let highest = bins.iter().map(|bin| bin.2).fold(0.0, f64::max) * 1.08;
    let card = Card {
        title: format!(
            "{} weights and the {} levels they are rounded to",
            thousands(weights.len() as u64),
            levels.len()
        ),
        legend: vec![(Mark::Bar(BLUE), "Weights".to_string()), (Mark::Rule(ORANGE), "Levels".to_string())],
        x: Axis::new("Weight / largest magnitude in its block", range, 10, false),
        y: Axis::new("Weights", (0.0, highest), 6, true),
        foot: vec![
            "Levels stand closer together where there are more weights: most of them get a small error."
                .into(),
        ],
    };
    let svg = card.draw(|chart| {
        canvas::bars(chart, &bins, BLUE)?;
        levels.iter().try_for_each(|level| canvas::rule(chart, *level, (0.0, highest), ORANGE))
    })?;

    let mut uses = vec![0u64; levels.len()];
    for weight in &weights {
        // Levels are sorted: the first whose upper neighbour is farther away is the nearest.
        let nearest = levels.windows(2).take_while(|pair| *weight > (pair[0] + pair[1]) / 2.0).count();
        uses[nearest] += 1;
    }
    let mut table = Table::new(card.title.clone())
        .column("Level", Align::Right)
        .column("Weights", Align::Right)
        .column("Share", Align::Right);
    for (level, uses) in levels.iter().zip(&uses) {
        let share = 100.0 * *uses as f64 / weights.len() as f64;
        table = table.row([format!("{level:+.4}"), thousands(*uses), format!("{share:.1} %")]);
    }
    Ok(Figure { svg, text: table.to_text() })
}

/// Quantisation error of each block, in the order of the blocks.
///
/// `errors` holds one number per block, as the root mean square of (weight - dequantised weight).
/// More blocks than fit side by side are drawn as neighbours' means and maxima.
///
/// # Errors
/// [`Error::Setting`] if there is no finite number.
pub fn plot_block_errors(errors: &[f32]) -> Result<Figure> {
    const MOST: usize = 150;
    let errors = finite("errors", errors.iter().map(|e| f64::from(*e)))?;
    let size = errors.len().div_ceil(MOST);
    let group = |of: fn(&[f64]) -> f64| -> Vec<(f64, f64)> {
        let centre = |i: usize, chunk: &[f64]| i as f64 * size as f64 + chunk.len() as f64 / 2.0 - 0.5;
        errors.chunks(size).enumerate().map(|(i, chunk)| (centre(i, chunk), of(chunk))).collect()
    };
    let means = group(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64);
    let largest = group(|chunk| chunk.iter().copied().fold(f64::NEG_INFINITY, f64::max));

    let mean = errors.iter().sum::<f64>() / errors.len() as f64;
    let (worst, worst_error) = errors
        .iter()
        .copied()
        .enumerate()
        .fold((0, f64::NEG_INFINITY), |most, (i, error)| if error > most.1 { (i, error) } else { most });
    let summary = format!(
        "{} blocks: mean error {mean:.3e}, largest {worst_error:.3e} in block {}.",
        thousands(errors.len() as u64),
        thousands(worst as u64)
    );
    let mut legend = vec![(Mark::Disc(BLUE), "Error of a block".to_string())];
    if size > 1 {
        legend = vec![
            (Mark::Disc(BLUE), format!("Mean of {size} blocks")),
            (Mark::Square(ORANGE), "Largest of them".to_string()),
        ];
    }
    let x_range = scale::padded([0.0, errors.len() as f64 - 1.0].into_iter(), 0.02, 0.5);
    let top = scale::padded([0.0].into_iter().chain(errors.iter().copied()), 0.08, 1e-6).1;
    let card = Card {
        title: "Quantisation error by block".to_string(),
        legend,
        x: Axis::new("Block", x_range, 10, true),
        y: Axis::new("Root mean square error", (0.0, top), 6, false),
        foot: vec![summary.clone()],
    };
    let svg = card.draw(|chart| {
        if size > 1 {
            canvas::curve(chart, &largest, Mark::Square(ORANGE))?;
        }
        canvas::curve(chart, &means, Mark::Disc(BLUE))
    })?;
    Ok(Figure { svg, text: format!("{}\n{summary}\n", card.title) })
}

/// Histogram of the examples' lengths in tokens, with a line at `max_length`, where longer ones
/// are cut.
///
/// # Errors
/// [`Error::Setting`] if there are no lengths.
pub fn plot_token_lengths(lengths: &[usize], max_length: Option<usize>) -> Result<Figure> {
    let values = finite("lengths", lengths.iter().map(|length| *length as f64))?;
    let (shortest, longest) =
        values.iter().fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(*v), high.max(*v)));
    // Whole lengths: a bar stands for the same number of them everywhere.
    let width = ((longest - shortest + 1.0) / 60.0).ceil();
    let count = ((longest - shortest + 1.0) / width).ceil();
    let start = shortest - 0.5;
    let bins = histogram(&values, (start, start + width * count), count as usize);
    let highest = bins.iter().map(|bin| bin.2).fold(0.0, f64::max) * 1.08;

    // A limit far beyond the longest example would squeeze the bars; the words below name it.
    let limit = max_length.map(|limit| limit as f64).filter(|limit| *limit <= longest * 2.0);
    let x_range = scale::padded([start, start + width * count].into_iter().chain(limit), 0.03, 1.0);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let mut summary = format!(
        "{} examples, {shortest:.0} to {longest:.0} tokens, {mean:.1} on average.",
        thousands(values.len() as u64)
    );
    if let Some(max) = max_length {
        let cut = lengths.iter().filter(|length| **length > max).count();
        summary += &match cut {
            0 => format!(" None is longer than max_length = {max}."),
            cut => format!(" {} longer than max_length = {max} lose their end.", thousands(cut as u64)),
        };
    }
    let mut legend = vec![(Mark::Bar(BLUE), "Examples".to_string())];
    if let (Some(max), Some(_)) = (max_length, limit) {
        legend.push((Mark::Rule(ORANGE), format!("max_length = {max}")));
    }
    let card = Card {
        title: "Length of the formatted examples".to_string(),
        legend,
        x: Axis::new("Tokens", x_range, 10, true),
        y: Axis::new("Examples", (0.0, highest), 6, true),
        foot: vec![summary.clone()],
    };
    let svg = card.draw(|chart| {
        canvas::bars(chart, &bins, BLUE)?;
        limit.map_or(Ok(()), |limit| canvas::rule(chart, limit, (0.0, highest), ORANGE))
    })?;
    Ok(Figure { svg, text: format!("{}\n{summary}\n", card.title) })
}

/// Loss against the rank of the adapters, on a logarithmic axis of ranks.
///
/// `points` are pairs of rank (1 or more) and loss in nats per token, in any order.
///
/// # Errors
/// [`Error::Setting`] if no pair has a finite loss and a rank above zero.
pub fn plot_rank_losses(points: &[(usize, f64)]) -> Result<Figure> {
    let mut kept: Vec<(usize, f64)> =
        points.iter().copied().filter(|(rank, loss)| *rank > 0 && loss.is_finite()).collect();
    if kept.is_empty() {
        return Err(empty("points", points.len()));
    }
    kept.sort_by_key(|(rank, _)| *rank);
    let places: Vec<(f64, f64)> = kept.iter().map(|(rank, loss)| ((*rank as f64).log2(), *loss)).collect();
    let mut ticks: Vec<(f64, String)> =
        kept.iter().map(|(rank, _)| ((*rank as f64).log2(), rank.to_string())).collect();
    ticks.dedup();
    let card = Card {
        title: "Loss against the rank of the adapters".to_string(),
        legend: Vec::new(),
        x: Axis::with_ticks("Rank r", scale::padded(places.iter().map(|p| p.0), 0.05, 0.5), ticks),
        y: Axis::new("Loss (nats per token)", scale::padded(places.iter().map(|p| p.1), 0.12, 0.1), 7, false),
        foot: Vec::new(),
    };
    let svg = card.draw(|chart| canvas::curve(chart, &places, Mark::Disc(BLUE)))?;
    let mut table = Table::new(card.title.clone()).column("Rank", Align::Right).column("Loss", Align::Right);
    for (rank, loss) in &kept {
        table = table.row([rank.to_string(), crate::display::nats(*loss)]);
    }
    Ok(Figure { svg, text: table.to_text() })
}

/// `(from, to, count)` of `count` bins over `range`.
fn histogram(values: &[f64], (low, high): (f64, f64), count: usize) -> Vec<(f64, f64, f64)> {
    let count = count.max(1);
    let width = (high - low) / count as f64;
    let mut bins: Vec<(f64, f64, f64)> =
        (0..count).map(|i| (low + width * i as f64, low + width * (i + 1) as f64, 0.0)).collect();
    for value in values {
        let index = ((value - low) / width).floor().max(0.0) as usize;
        if let Some(bin) = bins.get_mut(index.min(count - 1)) {
            bin.2 += 1.0;
        }
    }
    bins
}

fn finite(name: &'static str, values: impl Iterator<Item = f64>) -> Result<Vec<f64>> {
    let (mut kept, mut all) = (Vec::new(), 0);
    for value in values {
        all += 1;
        if value.is_finite() {
            kept.push(value);
        }
    }
    if kept.is_empty() { Err(empty(name, all)) } else { Ok(kept) }
}

fn empty(name: &'static str, all: usize) -> Error {
    let value = if all == 0 { "[]".to_string() } else { format!("{all} values, none usable") };
    Error::setting(name, value, "the plot needs at least one finite number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_falls_on_one_level() {
        let weights: Vec<f32> = (-100..=100).map(|i| i as f32 / 100.0).collect();
        let figure = plot_weight_histogram(&weights, &[1.0, -1.0, 0.0]).unwrap();
        // Ties go to the lower level: -0.5 to -1, 0.5 to 0.
        for line in ["-1.0000       51  25.4 %", "+0.0000      100  49.8 %", "+1.0000       50  24.9 %"] {
            assert!(figure.text().contains(line), "{}", figure.text());
        }
        assert!(figure.svg().contains("201 weights and the 3 levels"));
    }

    #[test]
    fn histogram_counts_everything_once() {
        let bins = histogram(&[0.0, 0.5, 1.0, 0.999], (0.0, 1.0), 2);
        assert_eq!(bins, [(0.0, 0.5, 1.0), (0.5, 1.0, 3.0)]);
    }

    #[test]
    fn token_lengths_say_what_is_cut() {
        let figure = plot_token_lengths(&[20, 21, 21, 30, 300], Some(256)).unwrap();
        assert!(
            figure.text().contains("5 examples, 20 to 300 tokens, 78.4 on average. 1 longer"),
            "{figure}"
        );
        assert!(plot_token_lengths(&[20], Some(256)).unwrap().text().contains("None is longer"));
    }

    #[test]
    fn block_errors_name_the_worst() {
        let mut errors = vec![0.001f32; 10_000];
        errors[4_321] = 0.01;
        let figure = plot_block_errors(&errors).unwrap();
        assert!(figure.text().contains("largest 1.000e-2 in block 4,321"), "{figure}");
        assert!(figure.svg().len() < 60_000);
    }

    #[test]
    fn odd_input_is_drawn_or_refused() {
        assert!(plot_weight_histogram(&[], &[0.0]).is_err());
        assert!(plot_weight_histogram(&[0.0], &[f32::NAN]).is_err());
        assert!(plot_weight_histogram(&[0.0], &[0.0]).is_ok());
        assert!(plot_block_errors(&[]).is_err());
        assert!(plot_block_errors(&[0.0]).is_ok());
        assert!(plot_block_errors(&[f32::INFINITY, 0.0]).is_ok());
        assert!(plot_token_lengths(&[], None).is_err());
        assert!(plot_token_lengths(&[0, 0], None).is_ok());
        assert!(plot_token_lengths(&[1, 1_000_000], Some(0)).is_ok());
        assert!(plot_rank_losses(&[(0, 1.0), (4, f64::NAN)]).is_err());
        assert!(plot_rank_losses(&[(8, 1.0), (4, 1.5), (8, 1.1)]).is_ok());
    }
}
