//! The output head and the loss in one op: `loss = Σ −log softmax(h Wᵀ)[target]`, in blocks of
//! rows, so that the logits of all tokens are never in memory at once (the idea of Wijmans et al.
//! 2024, "Cut Your Losses", arXiv:2411.09009). Rows without a target are skipped altogether.

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
mod factors;

use candle_core::{Result, Tensor};

use super::IGNORE_INDEX;
use super::replaced::Replaced;
use crate::host;
pub use factors::{HeadGradient, PIECE};

/// What [`loss`] returns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSum {
    /// Sum of the rows' losses, nats.
    pub sum: f64,
    /// How many rows have a target.
    pub rows: usize,
}

/// The head: its weight, and what stands in place of some of its rows.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[vocab, hidden]`.
    pub weight: &'a Tensor,
    /// Rows that are read in place of the weight's.
    pub replaced: Option<Replaced<'a>>,
}

impl<'a> From<&'a Tensor> for Head<'a> {
    fn from(weight: &'a Tensor) -> Self {
        Self { weight, replaced: None }
    }
}

impl Head<'_> {
    /// Calls `f` with the numbers of it all.
    fn read<R>(&self, f: impl FnOnce(cpu::Weight<'_>) -> Result<R>) -> Result<R> {
        host::read(self.weight, |table| match self.replaced {
            None => f(cpu::Weight { table, ids: &[], rows: &[] }),
            Some(replaced) => {
                host::read(replaced.rows(), |rows| f(cpu::Weight { table, ids: replaced.ids(), rows }))
            }
        })
    }
}

/// The summed loss of `h` `[tokens, hidden]` under the head `w` `[vocab, hidden]`.
///
/// `targets[t]` is the token that row `t` is to predict, or [`IGNORE_INDEX`].
///
/// # Errors
/// If shapes do not fit, a target is outside the vocabulary, or there is no version for the device.
pub fn loss<'a>(h: &Tensor, w: impl Into<Head<'a>>, targets: &[i64]) -> Result<LossSum> {
    let w = w.into();
    let (rows, sizes) = check(h, &w, targets)?;
    let sum = host::read(h, |h| w.read(|w| Ok(cpu::loss(h, w, &rows, &sizes))))?;
    Ok(LossSum { sum, rows: rows.len() })
}

/// [`loss`] with its gradients times `factor` (as a rule 1 / number of targets in the step):
/// returns the one for `h`, adds the one for `w` into `dw` where it is trained: `[vocab, hidden]`, or
/// `[ids, hidden]` if rows of it are replaced, which are what is trained then.
///
/// # Errors
/// As [`loss`].
pub fn loss_and_gradient<'a>(
    h: &Tensor,
    w: impl Into<Head<'a>>,
    targets: &[i64],
    factor: f64,
    dw: Option<&Tensor>,
) -> Result<(LossSum, Tensor)> {
    let w = w.into();
    let (rows, sizes) = check(h, &w, targets)?;
    let trained = w.replaced.map_or(sizes.vocab, |replaced| replaced.ids().len());
    if let Some(dw) = dw
        && dw.dims() != [trained, sizes.hidden]
    {
        candle_core::bail!(
            "linear_cross_entropy: {trained} rows are trained, the gradient is {:?}",
            dw.dims()
        )
    }
    let (sum, dh) = host::read(h, |h| {
        w.read(|w| match dw {
            None => Ok(cpu::loss_and_gradient(h, w, &rows, &sizes, factor as f32, cpu::Trained::Nothing)),
            Some(dw) => {
                let mut result = None;
                host::update(dw, |dw| {
                    let dw = cpu::Trained::Dense(dw);
                    result = Some(cpu::loss_and_gradient(h, w, &rows, &sizes, factor as f32, dw));
                    Ok(())
                })?;
                result.ok_or_else(|| candle_core::Error::Msg("linear_cross_entropy did not run".into()))
            }
        })
    })?;
    Ok((LossSum { sum, rows: rows.len() }, host::tensor(dh, h.shape())?))
}

/// [`loss_and_gradient`] of a head whose gradient is kept in its factors.
///
/// # Errors
/// As [`loss`].
pub fn loss_and_factors(
    h: &Tensor,
    w: &Tensor,
    targets: &[i64],
    factor: f64,
    gradient: &mut HeadGradient,
) -> Result<(LossSum, Tensor)> {
    let w = Head::from(w);
    let (rows, sizes) = check(h, &w, targets)?;
    let (sum, dh) = host::read(h, |h| {
        w.read(|w| {
            let factors = cpu::Trained::Factors(gradient);
            Ok(cpu::loss_and_gradient(h, w, &rows, &sizes, factor as f32, factors))
        })
    })?;
    Ok((LossSum { sum, rows: rows.len() }, host::tensor(dh, h.shape())?))
}

/// How many rows are worth their factors in place of a gradient `[vocab, hidden]`: those are less than half as large
/// then, and all of the logits are there at once anyway.
pub fn rows_in_factors(vocab: usize, hidden: usize) -> usize {
    (hidden / 2).min(cpu::block_rows(vocab))
}

/// Sizes read off the tensors.
struct Sizes {
    hidden: usize,
    vocab: usize,
}

/// The rows that have a target, with it.
fn check(h: &Tensor, w: &Head<'_>, targets: &[i64]) -> Result<(Vec<(usize, usize)>, Sizes)> {
    host::require_cpu_f32("linear_cross_entropy", h)?;
    let (tokens, hidden) = h.dims2()?;
    let (vocab, w_hidden) = w.weight.dims2()?;
    let replaced = |r: Replaced<'_>| {
        r.rows().dims() == [r.ids().len(), hidden] && r.ids().last().is_none_or(|id| (*id as usize) < vocab)
    };
    if hidden != w_hidden || tokens != targets.len() || !w.replaced.is_none_or(replaced) {
        candle_core::bail!(
            "linear_cross_entropy: h is {:?}, the head {:?} (replaced: {:?}), with {} targets",
            h.dims(),
            w.weight.dims(),
            w.replaced.map(|replaced| replaced.rows().dims()),
            targets.len()
        )
    }
    let mut rows = vec![];
    for (row, &target) in targets.iter().enumerate() {
        match usize::try_from(target) {
            Ok(target) if target < vocab => rows.push((row, target)),
            _ if target == IGNORE_INDEX => {}
            _ => candle_core::bail!(
                "linear_cross_entropy: target {target} is outside the vocabulary of {vocab}"
            ),
        }
    }
    Ok((rows, Sizes { hidden, vocab }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    #[test]
    fn agrees_with_candle_and_with_finite_differences() -> Result<()> {
        let (h, w) = (random(1, (5, 6))?, random(2, (9, 6))?);
        let targets = [3, IGNORE_INDEX, 0, 8, IGNORE_INDEX];
        let LossSum { sum, rows } = loss(&h, &w, &targets)?;
        assert_eq!(rows, 3);
        let kept = Tensor::new(&[0u32, 2, 3], h.device())?;
        let logits = h.index_select(&kept, 0)?.matmul(&w.t()?)?;
        let mean = candle_nn::loss::cross_entropy(&logits, &Tensor::new(&[3u32, 0, 8], h.device())?)?;
        assert!((sum / 3.0 - mean.to_scalar::<f32>()? as f64).abs() < 1e-6);

        let dw = w.zeros_like()?;
        let (again, dh) = loss_and_gradient(&h, &w, &targets, 0.5, Some(&dw))?;
        assert!((again.sum - sum).abs() < 1e-6);
        let half = |h: &Tensor, w: &Tensor| Tensor::new((loss(h, w, &targets)?.sum * 0.5) as f32, h.device());
        Check::new("h").run(&h, &dh, |h| half(h, &w))?;
        Check::new("w").run(&w, &dw, |w| half(&h, w))
    }

    #[test]
    fn blocks_add_up() -> Result<()> {
        let (h, w) = (random(1, (40, 6))?, random(2, (9, 6))?);
        let targets: Vec<i64> = (0..40).map(|i| i % 9).collect();
        let head = Head::from(&w);
        let (rows, sizes) = check(&h, &head, &targets)?;
        let run = |block| {
            let mut dw = vec![0.0; 54];
            host::read(&h, |h| {
                head.read(|w| {
                    Ok(cpu::in_blocks(h, w, &rows, &sizes, 1.0, cpu::Trained::Dense(&mut dw), block))
                })
            })
            .map(|(sum, dh)| (sum, dh, dw))
        };
        let (one, several) = (run(64)?, run(7)?);
        assert!((one.0 - several.0).abs() < 1e-5);
        assert!(one.1.iter().zip(&several.1).all(|(a, b)| (a - b).abs() < 1e-6));
        assert!(one.2.iter().zip(&several.2).all(|(a, b)| (a - b).abs() < 1e-5));
        Ok(())
    }

    #[test]
    fn replaced_rows_are_read_and_learn() -> Result<()> {
        let (h, w, rows) = (random(1, (5, 6))?, random(2, (9, 6))?, random(3, (3, 6))?);
        let (targets, ids) = ([3, IGNORE_INDEX, 0, 8, 7], [0u32, 3, 7]);
        let whole = |rows: &Tensor| -> Result<Tensor> {
            let row = |i: usize| match ids.iter().position(|id| *id as usize == i) {
                Some(at) => rows.narrow(0, at, 1),
                None => w.narrow(0, i, 1),
            };
            Tensor::cat(&(0..9).map(row).collect::<Result<Vec<_>>>()?, 0)
        };
        let with = |rows: &Tensor, targets: &[i64]| {
            loss(&h, Head { weight: &w, replaced: Some(Replaced::new(&ids, rows)?) }, targets)
        };
        let put_in = loss(&h, &whole(&rows)?, &targets)?;
        assert!((with(&rows, &targets)?.sum - put_in.sum).abs() < 1e-5);

        let (drows, dw) = (rows.zeros_like()?, w.zeros_like()?);
        let head = Head { weight: &w, replaced: Some(Replaced::new(&ids, &rows)?) };
        let (_, dh) = loss_and_gradient(&h, head, &targets, 0.5, Some(&drows))?;
        let (_, expected) = loss_and_gradient(&h, &whole(&rows)?, &targets, 0.5, Some(&dw))?;
        let close = |a: &Tensor, b: &Tensor| -> Result<bool> {
            Ok((a - b)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? < 1e-6)
        };
        assert!(close(&dh, &expected)?);
        assert!(close(&drows, &dw.index_select(&Tensor::new(&ids, h.device())?, 0)?)?);
        Check::new("rows").run(&rows, &drows, |rows| {
            Tensor::new((with(&rows.contiguous()?, &targets)?.sum * 0.5) as f32, h.device())
        })?;
        // A gradient of another size than what is trained, and ids outside the table.
        assert!(loss_and_gradient(&h, head, &targets, 0.5, Some(&dw)).is_err());
        let outside = Head { weight: &w, replaced: Some(Replaced::new(&[1, 2, 9], &rows)?) };
        assert!(loss(&h, outside, &targets).is_err());
        Ok(())
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_an_error() -> Result<()> {
        let (h, w) = (random(1, (1, 2))?, random(2, (3, 2))?);
        assert!(loss(&h, &w, &[3]).is_err());
        assert!(loss(&h, &w, &[-1]).is_err());
        assert_eq!(loss(&h, &w, &[IGNORE_INDEX])?, LossSum { sum: 0.0, rows: 0 });
        Ok(())
    }
}
