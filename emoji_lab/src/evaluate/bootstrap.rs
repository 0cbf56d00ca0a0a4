//! How far a mean may be off, from the values themselves.

use std::fmt;

use crate::rng::Philox;

/// The random stream of the draws, so that it shares no number with other uses of the seed.
const STREAM: u64 = u64::from_be_bytes(*b"\0\0\0\0boot");

/// A mean with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Estimate {
    /// The mean of `values`, and the interval in which 95 % of the means lie that `resamples` draws
    /// of as many values, with replacement, have (the percentile bootstrap, Efron 1979).
    ///
    /// It answers what other rows of the same kind might have given. It knows nothing of other
    /// seeds in training. Of no values, everything is 0.
    pub(super) fn of(values: &[f64], resamples: usize, seed: u64) -> Self {
        let n = values.len();
        if n == 0 || resamples == 0 {
            return Self { mean: 0.0, low: 0.0, high: 0.0 };
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let mut rng = Philox::new(seed, STREAM);
        let mut one = || (0..n).map(|_| values[rng.below(n as u64) as usize]).sum::<f64>() / n as f64;
        let mut means: Vec<f64> = (0..resamples).map(|_| one()).collect();
        means.sort_unstable_by(f64::total_cmp);
        let outside = resamples / 40;
        Self { mean, low: means[outside], high: means[resamples - 1 - outside] }
    }
}

impl fmt::Display for Estimate {
    /// `0.366 [0.331, 0.402]`; a precision takes the place of three digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(3);
        if f.sign_plus() {
            return write!(f, "{:+.digits$} [{:+.digits$}, {:+.digits$}]", self.mean, self.low, self.high);
        }
        write!(f, "{:.digits$} [{:.digits$}, {:.digits$}]", self.mean, self.low, self.high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_as_wide_as_theory_says() {
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 4 == 0)).collect();
        let estimate = Estimate::of(&values, 2000, 1);
        assert_eq!(estimate.mean, 0.25);
        // ±1.96 √(p q / n) = ±0.0424; the ends of 2,000 draws are known to about 0.001.
        assert!((estimate.low - 0.2076).abs() < 0.005, "{estimate}");
        assert!((estimate.high - 0.2924).abs() < 0.005, "{estimate}");
        assert_eq!(estimate, Estimate::of(&values, 2000, 1));
        let uneven: Vec<f64> = (0..400).map(|i| f64::from(i).sqrt()).collect();
        assert_ne!(Estimate::of(&uneven, 2000, 1), Estimate::of(&uneven, 2000, 2));
    }

    #[test]
    fn it_holds_the_true_mean_about_as_often_as_it_says() {
        let mut rng = Philox::new(9, 0);
        let held = (0..400).filter(|seed| {
            let values: Vec<f64> = (0..60).map(|_| f64::from(rng.next_f32())).collect();
            let estimate = Estimate::of(&values, 400, *seed);
            estimate.low <= 0.5 && 0.5 <= estimate.high
        });
        // 380 of 400 in the long run, a little fewer for 60 values; four standard deviations are 17.
        let held = held.count();
        assert!((358..=397).contains(&held), "{held}");
    }

    #[test]
    fn few_values_and_none() {
        assert_eq!(Estimate::of(&[0.5], 100, 1), Estimate { mean: 0.5, low: 0.5, high: 0.5 });
        assert_eq!(Estimate::of(&[], 100, 1).mean, 0.0);
    }

    #[test]
    fn shown_with_its_interval() {
        let estimate = Estimate { mean: 0.0837, low: -0.0512, high: 0.1 };
        assert_eq!(estimate.to_string(), "0.084 [-0.051, 0.100]");
        assert_eq!(format!("{estimate:+.2}"), "+0.08 [-0.05, +0.10]");
    }
}
