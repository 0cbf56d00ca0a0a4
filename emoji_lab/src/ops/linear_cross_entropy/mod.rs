//! The output head and the loss in one op: `loss = Σ −log softmax(h Wᵀ)[target]`, in blocks of
//! rows, so that the logits of all tokens are never in memory at once (the idea of Wijmans et al.
//! 2024, "Cut Your Losses", arXiv:2411.09009). Rows without a target are skipped altogether.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

use candle_core::{Result, Tensor};

use super::IGNORE_INDEX;
use crate::host;

/// What [`loss`] returns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossSum {
    /// Sum of the rows' losses, nats.
    pub sum: f64,
    /// How many rows have a target.
    pub rows: usize,
}

/// The summed loss of `h` `[tokens, hidden]` under the head `w` `[vocab, hidden]`.
///
/// `targets[t]` is the token that row `t` is to predict, or [`IGNORE_INDEX`].
///
/// # Errors
/// If shapes do not fit, a target is outside the vocabulary, or there is no version for the device.
pub fn loss(h: &Tensor, w: &Tensor, targets: &[i64]) -> Result<LossSum> {
    let (rows, sizes) = check(h, w, targets)?;
    let sum = host::read(h, |h| host::read(w, |w| Ok(cpu::loss(h, w, &rows, &sizes))))?;
    Ok(LossSum { sum, rows: rows.len() })
}

/// [`loss`] with its gradients times `factor` (as a rule 1 / number of targets in the step):
/// returns the one for `h`, adds the one for `w` into `dw` `[vocab, hidden]` where it is trained.
///
/// # Errors
/// As [`loss`].
pub fn loss_and_gradient(
    h: &Tensor,
    w: &Tensor,
    targets: &[i64],
    factor: f64,
    dw: Option<&Tensor>,
) -> Result<(LossSum, Tensor)> {
    let (rows, sizes) = check(h, w, targets)?;
    let (sum, dh) = host::read(h, |h| {
        host::read(w, |w| match dw {
            None => Ok(cpu::loss_and_gradient(h, w, &rows, &sizes, factor as f32, None)),
            Some(dw) => {
                let mut result = None;
                host::update(dw, |dw| {
                    result = Some(cpu::loss_and_gradient(h, w, &rows, &sizes, factor as f32, Some(dw)));
                    Ok(())
                })?;
                result.ok_or_else(|| candle_core::Error::Msg("linear_cross_entropy did not run".into()))
            }
        })
    })?;
    Ok((LossSum { sum, rows: rows.len() }, host::tensor(dh, h.shape())?))
}

/// Sizes read off the tensors.
struct Sizes {
    hidden: usize,
    vocab: usize,
}

/// The rows that have a target, with it.
fn check(h: &Tensor, w: &Tensor, targets: &[i64]) -> Result<(Vec<(usize, usize)>, Sizes)> {
    host::require_cpu_f32("linear_cross_entropy", h)?;
    let (tokens, hidden) = h.dims2()?;
    let (vocab, w_hidden) = w.dims2()?;
    if hidden != w_hidden || tokens != targets.len() {
        candle_core::bail!(
            "linear_cross_entropy: h is {:?}, the head {:?}, with {} targets",
            h.dims(),
            w.dims(),
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
        let (rows, sizes) = check(&h, &w, &targets)?;
        let run = |block| {
            let mut dw = vec![0.0; 54];
            host::read(&h, |h| {
                host::read(&w, |w| Ok(cpu::in_blocks(h, w, &rows, &sizes, 1.0, Some(&mut dw), block)))
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
    fn a_target_outside_the_vocabulary_is_an_error() -> Result<()> {
        let (h, w) = (random(1, (1, 2))?, random(2, (3, 2))?);
        assert!(loss(&h, &w, &[3]).is_err());
        assert!(loss(&h, &w, &[-1]).is_err());
        assert_eq!(loss(&h, &w, &[IGNORE_INDEX])?, LossSum { sum: 0.0, rows: 0 });
        Ok(())
    }
}
