//! Learning-rate schedules, as `transformers.get_scheduler` computes them.

use std::f64::consts::PI;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `lr_scheduler_type`: what the learning rate is multiplied by, step by step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// 1 at every step, warmup or not.
    Constant,
    /// Rises from 0 to 1 over the warmup, then 1.
    ConstantWithWarmup,
    /// Rises from 0 to 1 over the warmup, then falls in a line to 0 at the last step.
    #[default]
    Linear,
    /// Rises from 0 to 1 over the warmup, then falls along half a cosine to 0 at the last step.
    Cosine,
}

impl Scheduler {
    /// The factor of optimizer step `step`, counted from 0, in a run of `total` steps of which the
    /// first `warmup` rise from 0.
    ///
    /// The first step of a run with warmup therefore has learning rate 0, as in transformers.
    #[must_use]
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if self == Self::Constant {
            return 1.0;
        }
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let falling = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Constant | Self::ConstantWithWarmup => 1.0,
            Self::Linear => total.saturating_sub(step) as f64 / falling,
            Self::Cosine => {
                let progress = (step - warmup) as f64 / falling;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
        }
    }

    /// The name transformers has for it, as `constant_with_warmup`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Scheduler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::Constant, Self::ConstantWithWarmup, Self::Linear, Self::Cosine]
            .into_iter()
            .find(|scheduler| scheduler.name() == name)
            .ok_or_else(|| {
                let help = "use constant, constant_with_warmup, linear or cosine";
                Error::setting("lr_scheduler_type", name, help)
            })
    }
}

/// How many steps the learning rate rises, out of `total`.
///
/// A `warmup_steps` above 0 wins; otherwise it is the share `warmup_ratio` of `total`, rounded up.
///
/// # Errors
/// [`Error::Setting`] if `warmup_ratio` has a say and is outside 0 to 1.
pub fn warmup_steps(warmup_steps: usize, warmup_ratio: f64, total: usize) -> Result<usize> {
    if warmup_steps > 0 {
        return Ok(warmup_steps);
    }
    if !(0.0..=1.0).contains(&warmup_ratio) {
        let help = "a share of the steps, from 0 to 1; 0.03 is usual, 0 for no warmup";
        return Err(Error::setting("warmup_ratio", warmup_ratio, help));
    }
    Ok((total as f64 * warmup_ratio).ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    // torch.optim.AdamW at lr 1.0 under transformers 5.23 get_scheduler(name, num_warmup_steps,
    // num_training_steps): get_last_lr() before each step, two steps past the end included.
    const CONSTANT: [f64; 12] = [1.0; 12];
    const CONSTANT_4: [f64; 12] = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    const LINEAR_3_10: [f64; 12] = [
        0.0,
        0.3333333333333333,
        0.6666666666666666,
        1.0,
        0.8571428571428571,
        0.7142857142857143,
        0.5714285714285714,
        0.42857142857142855,
        0.2857142857142857,
        0.14285714285714285,
        0.0,
        0.0,
    ];
    const LINEAR_12_10: [f64; 12] = [
        0.0,
        0.08333333333333333,
        0.16666666666666666,
        0.25,
        0.3333333333333333,
        0.4166666666666667,
        0.5,
        0.5833333333333334,
        0.6666666666666666,
        0.75,
        0.8333333333333334,
        0.9166666666666666,
    ];
    const COSINE_0_10: [f64; 12] = [
        1.0,
        0.9755282581475768,
        0.9045084971874737,
        0.7938926261462366,
        0.6545084971874737,
        0.5,
        0.34549150281252633,
        0.2061073738537635,
        0.09549150281252633,
        0.024471741852423234,
        0.0,
        0.024471741852423234,
    ];
    const COSINE_3_11: [f64; 13] = [
        0.0,
        0.3333333333333333,
        0.6666666666666666,
        1.0,
        0.9619397662556434,
        0.8535533905932737,
        0.6913417161825449,
        0.5,
        0.30865828381745514,
        0.14644660940672627,
        0.03806023374435663,
        0.0,
        0.038060233744356575,
    ];

    #[test]
    fn factors_are_those_of_transformers() {
        let cases: [(Scheduler, usize, usize, &[f64]); 6] = [
            (Scheduler::Constant, 4, 10, &CONSTANT),
            (Scheduler::ConstantWithWarmup, 4, 10, &CONSTANT_4),
            (Scheduler::Linear, 3, 10, &LINEAR_3_10),
            (Scheduler::Linear, 12, 10, &LINEAR_12_10),
            (Scheduler::Cosine, 0, 10, &COSINE_0_10),
            (Scheduler::Cosine, 3, 11, &COSINE_3_11),
        ];
        for (scheduler, warmup, total, theirs) in cases {
            for (step, want) in theirs.iter().enumerate() {
                let got = scheduler.factor(step, warmup, total);
                // Two libm's may round a cosine apart by a bit; the rest is exact.
                let slack = if scheduler == Scheduler::Cosine { 1e-15 } else { 0.0 };
                assert!((got - want).abs() <= slack, "{scheduler} {warmup}/{total} step {step}: {got}");
            }
        }
    }

    // TrainingArguments(warmup_steps=RATIO).get_warmup_steps(TOTAL) of transformers 5.23, which
    // reads a value below 1 as a ratio. 0.07 · 100 is a hair above 7 in f64, hence 8.
    #[test]
    fn a_ratio_is_rounded_up() {
        let cases = [
            (0.1, 10, 1),
            (0.1, 11, 2),
            (0.03, 100, 3),
            (0.03, 7, 1),
            (0.5, 3, 2),
            (0.0, 9, 0),
            (0.07, 100, 8),
            (0.29, 100, 29),
        ];
        for (ratio, total, want) in cases {
            assert_eq!(warmup_steps(0, ratio, total).unwrap(), want, "{ratio} of {total}");
        }
        assert_eq!(warmup_steps(5, 0.5, 100).unwrap(), 5);
        for ratio in [-0.1, 1.1, f64::NAN] {
            assert!(warmup_steps(0, ratio, 10).unwrap_err().to_string().contains("warmup_ratio"));
        }
    }

    #[test]
    fn names_go_both_ways() {
        for name in ["constant", "constant_with_warmup", "linear", "cosine"] {
            let scheduler: Scheduler = name.parse().unwrap();
            assert_eq!(scheduler.to_string(), name);
            assert_eq!(serde_json::to_value(scheduler).unwrap(), name);
        }
        let error = "polynomial".parse::<Scheduler>().unwrap_err().to_string();
        assert!(error.contains("lr_scheduler_type = polynomial"), "{error}");
    }
}
