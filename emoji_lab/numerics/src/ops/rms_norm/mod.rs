//! RMSNorm as Gemma has it: `y = x / sqrt(mean(x²) + eps) · (1 + w)` over the last axis
//! (Zhang & Sennrich 2019, arXiv:1910.07467; the `1 +` is Gemma's).

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

use candle_core::{Result, Tensor};

use crate::host;
pub use cpu::row;

/// Normalises `x` `[rows, width]` with the weight `w` `[width]`.
///
/// Returns `y` `[rows, width]` and what [`backward`] needs: `rstd` `[rows]`, the factor
/// `1 / sqrt(mean(x²) + eps)` of every row.
///
/// # Errors
/// If shapes do not fit or there is no version for the tensor's device.
pub fn forward(x: &Tensor, w: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    host::require_cpu_f32("rms_norm", x)?;
    let (rows, width) = x.dims2()?;
    check(w, width)?;
    let (y, rstd) = host::read(x, |x| host::read(w, |w| Ok(cpu::forward(x, w, eps as f32))))?;
    Ok((host::tensor(y, (rows, width))?, host::tensor(rstd, rows)?))
}

/// The gradient of [`forward`] for `x` `[rows, width]`; the weight's is added into `dw` `[width]`
/// where the weight is trained.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, x: &Tensor, w: &Tensor, rstd: &Tensor, dw: Option<&Tensor>) -> Result<Tensor> {
    host::require_cpu_f32("rms_norm", x)?;
    let (rows, width) = x.dims2()?;
    check(w, width)?;
    let dx = host::read(dy, |dy| {
        host::read(x, |x| {
            host::read(w, |w| {
                host::read(rstd, |rstd| {
                    if let Some(dw) = dw {
                        host::update(dw, |dw| {
                            cpu::backward_weight(dy, x, rstd, dw);
                            Ok(())
                        })?;
                    }
                    Ok(cpu::backward(dy, x, w, rstd))
                })
            })
        })
    })?;
    host::tensor(dx, (rows, width))
}

fn check(w: &Tensor, width: usize) -> Result<()> {
    if w.dims() != [width] {
        candle_core::bail!("rms_norm: the weight has shape {:?}, the rows are {width} wide", w.dims())
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    #[test]
    fn gradients_agree_with_finite_differences() -> Result<()> {
        for (rows, width) in [(1, 1), (3, 7), (5, 32)] {
            let (x, w, g) = (random(1, (rows, width))?, random(2, width)?, random(3, (rows, width))?);
            let (_, rstd) = forward(&x, &w, 1e-6)?;
            let dw = w.zeros_like()?;
            let dx = backward(&g, &x, &w, &rstd, Some(&dw))?;
            let loss = |x: &Tensor, w: &Tensor| forward(x, w, 1e-6).and_then(|(y, _)| (y * &g)?.sum_all());
            Check::new("x").run(&x, &dx, |x| loss(x, &w))?;
            Check::new("w").run(&w, &dw, |w| loss(&x, w))?;
        }
        Ok(())
    }
}
