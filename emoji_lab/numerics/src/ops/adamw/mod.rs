//! AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) over one flat arena, as `torch.optim.AdamW`
//! computes it, with gradient clipping folded in.

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod head;
#[cfg(all(test, feature = "cuda"))]
pub(crate) mod head_tests;

pub use cpu::Factors;

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

use crate::host;
use crate::rng::Philox;

/// AdamW's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, times the learning rate each step.
    pub weight_decay: f64,
    /// What both moments are kept in between steps: f32, or bf16, which halves their memory on a GPU.
    /// In bf16 they are rounded up or down at random (stochastic rounding), as near as they are to
    /// either: rounded to the nearest, a second moment would never decay, since (1 − β₂) of it is
    /// less than bf16's last bit.
    pub state_dtype: DType,
}

impl Default for AdamW {
    /// PyTorch's.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, state_dtype: DType::F32 }
    }
}

/// How fast the elements move, and which decay.
#[derive(Debug, Clone, Copy)]
pub struct Rates<'a> {
    /// The learning rate.
    pub learning_rate: f64,
    /// Elements from the first on that have a learning rate of their own, and that rate.
    pub first: (usize, f64),
    /// Elements that do not decay: ranges in order and apart.
    pub no_decay: &'a [Range<usize>],
}

impl From<f64> for Rates<'_> {
    /// One learning rate for all, which all decay.
    fn from(learning_rate: f64) -> Self {
        Self { learning_rate, first: (0, learning_rate), no_decay: &[] }
    }
}

/// One step on flat, equally long tensors: `values`, `gradients`, and the moments `m` and `v`.
///
/// `step` counts from 1. Gradients are multiplied by `gradient_scale` first, which is where
/// clipping comes in. `m` and `v` are f32 tensors; with `state_dtype` bf16 they hold values of bf16, rounded with
/// the words of `rounding`.
///
/// # Errors
/// If lengths differ or there is no version for the tensor's device.
#[expect(clippy::too_many_arguments, reason = "the formula has as many")]
pub fn step(
    values: &Tensor,
    gradients: &Tensor,
    (m, v): (&Tensor, &Tensor),
    settings: &AdamW,
    rates: Rates<'_>,
    step: usize,
    gradient_scale: f64,
    rounding: &Philox,
) -> Result<()> {
    host::require_cpu_f32("adamw", values)?;
    let moments = (m, v);
    host::read(gradients, |gradients| {
        step_from(0, values, gradients, moments, settings, rates, step, gradient_scale, rounding)
    })
}

/// [`step`] on some of the elements, those from number `at` on: `values` and the moments are views of these. What
/// comes of it is what [`step`] makes of them.
#[expect(clippy::too_many_arguments, reason = "the formula has as many")]
pub fn step_from(
    at: usize,
    values: &Tensor,
    gradients: &[f32],
    (m, v): (&Tensor, &Tensor),
    settings: &AdamW,
    rates: Rates<'_>,
    step: usize,
    gradient_scale: f64,
    rounding: &Philox,
) -> Result<()> {
    if [values, m, v].iter().any(|t| t.elem_count() != gradients.len()) {
        candle_core::bail!("adamw: {} values, but other lengths beside them", values.elem_count())
    }
    let factors = Factors::new(settings, rates.learning_rate, step);
    let (count, rate) = rates.first;
    let first = (count, Factors::new(settings, rate, step));
    let rounding = (settings.state_dtype == DType::BF16).then_some(rounding);
    host::update(values, |values| {
        host::update(m, |m| {
            host::update(v, |v| {
                let factors = (&factors, &first);
                let scale = gradient_scale as f32;
                cpu::step(at, values, gradients, m, v, factors, rates.no_decay, scale, rounding);
                Ok(())
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Three steps of the formula in f64, written out.
    #[test]
    fn agrees_with_the_formula() -> Result<()> {
        let settings = AdamW::default();
        let start = [0.5f64, -1.25, 3.0];
        let flat = |v: &[f64]| Tensor::new(v.iter().map(|v| *v as f32).collect::<Vec<_>>(), &Device::Cpu);
        let (values, m, v) = (flat(&start)?, flat(&[0.0; 3])?, flat(&[0.0; 3])?);
        let mut expected = start.map(|p| (p, 0.0f64, 0.0f64));
        for t in 1..=3 {
            let g = [0.3 * t as f64, -0.01, 2.0];
            step(&values, &flat(&g)?, (&m, &v), &settings, 0.1.into(), t, 0.5, &Philox::new(0, 0))?;
            for ((p, m, v), g) in expected.iter_mut().zip(g) {
                let g = g * 0.5;
                *p -= 0.1 * 0.01 * *p;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                let (m_hat, v_hat) =
                    (*m / (1.0 - 0.9f64.powi(t as i32)), *v / (1.0 - 0.999f64.powi(t as i32)));
                *p -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        }
        for (ours, (p, ..)) in values.to_vec1::<f32>()?.iter().zip(expected) {
            assert!((*ours as f64 - p).abs() < 1e-6, "{ours} and {p}");
        }
        Ok(())
    }

    /// Five steps of torch 2.15's AdamW with two parameter groups: the first two values decay by 0.1,
    /// the others not at all.
    #[test]
    fn agrees_with_torch_where_half_does_not_decay() -> Result<()> {
        const TORCH: [f32; 4] = [0.247_513_56, -0.971_548_8, 2.750_000_2, 0.992_541_6];
        let settings = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let flat = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let run = |no_decay: &[Range<usize>]| -> Result<Vec<f32>> {
            let (values, m, v) = (flat(&[0.5, -1.25, 3.0, 0.75])?, flat(&[0.0; 4])?, flat(&[0.0; 4])?);
            for t in 1..=5 {
                let g = flat(&[0.3 * t as f32, -0.01, 2.0, -0.5 * t as f32])?;
                let rates = Rates { no_decay, ..0.05.into() };
                step(&values, &g, (&m, &v), &settings, rates, t, 1.0, &Philox::new(0, 0))?;
            }
            values.to_vec1()
        };
        let half = [Range { start: 2, end: 4 }];
        let ours = run(&half)?;
        for (ours, torch) in ours.iter().zip(TORCH) {
            assert!((ours - torch).abs() < 5e-7, "{ours} and {torch}");
        }
        assert_eq!(run(&[2..3, 3..4])?, ours);
        let all = run(&[])?;
        assert_eq!(all[..2], ours[..2]);
        assert!((all[2] - ours[2]).abs() > 0.05);
        Ok(())
    }

    /// Elements with a learning rate of their own move as in a step of that rate, the others as ever.
    #[test]
    fn the_first_elements_can_have_a_learning_rate_of_their_own() -> Result<()> {
        let settings = AdamW { weight_decay: 0.1, ..AdamW::default() };
        let flat = |v: &[f32]| Tensor::new(v, &Device::Cpu);
        let run = |rates: Rates<'_>| -> Result<Vec<f32>> {
            let (values, m, v) = (flat(&[0.5, -1.25, 3.0, 0.75])?, flat(&[0.0; 4])?, flat(&[0.0; 4])?);
            for t in 1..=5 {
                let g = flat(&[0.3 * t as f32, -0.01, 2.0, -0.5 * t as f32])?;
                step(&values, &g, (&m, &v), &settings, rates, t, 1.0, &Philox::new(0, 0))?;
            }
            values.to_vec1()
        };
        let (slow, fast) = (run(0.01.into())?, run(0.05.into())?);
        assert_eq!(run(Rates { first: (3, 0.05), ..0.01.into() })?, [&fast[..3], &slow[3..]].concat());
        assert_eq!(run(Rates { first: (0, 0.05), ..0.01.into() })?, slow);
        assert_eq!(run(Rates { first: (4, 0.05), ..0.01.into() })?, fast);
        Ok(())
    }

    /// Elements that are taken in parts become what they become together, whatever is special about some.
    #[test]
    fn in_parts_it_is_the_same() -> Result<()> {
        let settings = AdamW { weight_decay: 0.1, state_dtype: DType::BF16, ..AdamW::default() };
        let flat =
            |first: f32| Tensor::new((0..50).map(|i| first + i as f32).collect::<Vec<_>>(), &Device::Cpu);
        let rates = Rates { first: (20, 0.05), no_decay: &[Range { start: 13, end: 27 }], ..0.01.into() };
        let (rounding, all) = (Philox::new(7, 1), [0, 7, 24, 50]);
        let run = |ends: &[usize]| -> Result<Vec<Vec<f32>>> {
            let (values, m, v, g) = (flat(1.0)?, flat(0.1)?, flat(0.3)?, flat(-20.0)?.to_vec1::<f32>()?);
            for ends in ends.windows(2) {
                let some = |t: &Tensor| t.narrow(0, ends[0], ends[1] - ends[0]);
                let moments = (&some(&m)?, &some(&v)?);
                let g = &g[ends[0]..ends[1]];
                step_from(ends[0], &some(&values)?, g, moments, &settings, rates, 3, 0.5, &rounding)?;
            }
            [values, m, v].iter().map(Tensor::to_vec1).collect()
        };
        let (whole, parts) = (run(&[0, 50])?, run(&all)?);
        assert_eq!(parts, whole);
        Ok(())
    }

    /// With a gradient of zero the second moment halves in 693 steps: in bf16 too, on average, and
    /// every value is one of bf16.
    #[test]
    fn bf16_moments_decay() -> Result<()> {
        let settings = AdamW { state_dtype: DType::BF16, ..AdamW::default() };
        let n = 4096;
        let full = |v: f32| Tensor::full(v, n, &Device::Cpu)?.contiguous();
        let (values, gradients, m, v) = (full(1.0)?, full(0.0)?, full(0.0)?, full(0.7)?);
        for t in 1..=693 {
            let rounding = Philox::new(7, t as u64);
            step(&values, &gradients, (&m, &v), &settings, 0.0.into(), t, 1.0, &rounding)?;
        }
        let v = v.to_vec1::<f32>()?;
        assert!(v.iter().all(|v| half::bf16::from_f32(*v).to_f32() == *v));
        let mean = v.iter().sum::<f32>() / n as f32;
        assert!((mean - 0.35).abs() < 0.005, "{mean}");
        Ok(())
    }
}
