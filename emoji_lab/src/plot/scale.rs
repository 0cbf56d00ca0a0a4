//! Axis ranges, ticks and their labels.

/// A range on an axis with room at both ends; never empty, so that one point can be drawn.
///
/// `pad` is the share of the span added at each end, `least` the half-width around a single value.
pub(super) fn padded(values: impl Iterator<Item = f64>, pad: f64, least: f64) -> (f64, f64) {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return (0.0, 1.0);
    }
    let span = high - low;
    // Relative to the size: a span below what f64 resolves there would give equal tick positions.
    let smallest = low.abs().max(high.abs()) * 1e-9;
    if span <= smallest {
        let half = least.max(smallest * 1e3);
        return (low - half, high + half);
    }
    (low - span * pad, high + span * pad)
}

/// At most `most` round positions (1, 2 or 5 times a power of ten) between `low` and `high`.
pub(super) fn ticks((low, high): (f64, f64), most: usize, whole: bool) -> Vec<f64> {
    let step = tick_step((low, high), most, whole);
    if !step.is_finite() || step <= 0.0 {
        return Vec::new();
    }
    let first = (low / step).ceil();
    (0..=most)
        .map(|i| (first + i as f64) * step)
        .take_while(|tick| *tick <= high + step * 1e-9)
        // Minus zero would be labelled "-0".
        .map(|tick| if tick == 0.0 { 0.0 } else { tick })
        .collect()
}

fn tick_step((low, high): (f64, f64), most: usize, whole: bool) -> f64 {
    let rough = (high - low) / most.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    if whole { step.max(1.0) } else { step }
}

/// Labels with as many decimals as the distance between ticks needs.
pub(super) fn label(value: f64, ticks: &[f64]) -> String {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]).next().unwrap_or_else(|| value.abs());
    if value.abs() >= 1e6 || (step > 0.0 && step < 1e-5) {
        return format!("{value:.2e}");
    }
    let decimals = (0..=6).find(|d| {
        let scaled = step * 10f64.powi(*d);
        (scaled - scaled.round()).abs() < 1e-6 * scaled.abs().max(1e-12)
    });
    format!("{value:.*}", decimals.unwrap_or(3) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks((0.9, 3.1), 8, true), [1.0, 2.0, 3.0]);
        assert_eq!(ticks((-0.1, 1.0), 5, false), [0.0, 0.5, 1.0]);
        assert_eq!(ticks((0.0, 100.0), 5, false), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        for range in [(0.0, 1e-7), (1e9, 1e9 + 1.0), (-5.0, 1e12), (0.1, 0.3), (f64::NAN, 1.0), (2.0, 2.0)] {
            assert!(ticks(range, 8, false).len() <= 9, "{range:?}");
        }
    }

    #[test]
    fn labels_have_the_decimals_they_need() {
        let shown = |range| {
            let ticks = ticks(range, 6, false);
            ticks.iter().map(|tick| label(*tick, &ticks)).collect::<Vec<_>>()
        };
        assert_eq!(shown((0.0, 1.0)), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(shown((1.32, 1.38)), ["1.32", "1.33", "1.34", "1.35", "1.36", "1.37", "1.38"]);
        assert_eq!(shown((0.0, 300.0)), ["0", "50", "100", "150", "200", "250", "300"]);
    }

    #[test]
    fn one_value_gets_room() {
        assert_eq!(padded([2.0].into_iter(), 0.1, 0.5), (1.5, 2.5));
        assert_eq!(padded(std::iter::empty(), 0.1, 0.5), (0.0, 1.0));
        let (low, high) = padded([1e15].into_iter(), 0.1, 0.5);
        assert!(low < 1e15 && high > 1e15);
    }
}
