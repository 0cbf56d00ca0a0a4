//! A linear layer with its low-rank adapter as one op:
//! `y = x Wᵀ + scale · (dropout(x) Aᵀ) Bᵀ` (Hu et al. 2021, arXiv:2106.09685), where `W` is frozen
//! in NF4 (Dettmers et al. 2023, arXiv:2305.14314), frozen dense, or trained itself.

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
mod dropout;

use candle_core::{Result, Tensor};

use super::gemm::Stored;
use super::lazy::LazyTensor;
use crate::host;
use crate::quant::Nf4Tensor;

pub use dropout::Dropout;

/// A linear layer's weight `[out_features, in_features]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Full precision.
    Dense(LazyTensor),
    /// Four bits, unpacked where it is used.
    Nf4(Nf4Tensor),
}

impl From<Tensor> for Weight {
    fn from(weight: Tensor) -> Self {
        Self::Dense(weight.into())
    }
}

impl Weight {
    /// `(out_features, in_features)`.
    ///
    /// # Errors
    /// If the weight is not a matrix.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(w) => w.dims2(),
            Self::Nf4(w) => match w.dims() {
                &[rows, cols] => Ok((rows, cols)),
                dims => candle_core::bail!("a linear weight of shape {dims:?}"),
            },
        }
    }

    /// The weight out of NF4.
    ///
    /// # Errors
    /// Only if candle cannot make a tensor.
    pub fn dense(&self) -> Result<LazyTensor> {
        match self {
            Self::Dense(w) => Ok(w.clone()),
            Self::Nf4(w) => Ok(w.dequantize()?.into()),
        }
    }

    fn read<R>(&self, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
        match self {
            Self::Dense(w) => host::read(w, f),
            Self::Nf4(w) => f(&w.dequantize_vec()),
        }
    }
}

/// An adapter: `A` `[r, in_features]`, `B` `[out_features, r]`.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a> {
    /// Down to rank r.
    pub a: &'a Tensor,
    /// Up from rank r.
    pub b: &'a Tensor,
    /// `lora_alpha / r`.
    pub scale: f64,
    /// What is dropped of A's input; `None` outside training.
    pub dropout: Option<Dropout>,
}

/// Where [`backward`] adds weight gradients; `None` for what is frozen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gradients<'a> {
    /// For a dense `W`.
    pub dw: Option<&'a Tensor>,
    /// For `A`.
    pub da: Option<&'a Tensor>,
    /// For `B`.
    pub db: Option<&'a Tensor>,
}

/// The layer on `x` `[tokens, in_features]`.
///
/// Returns `y` `[tokens, out_features]` and, with an adapter, what [`backward`] needs:
/// `u = dropout(x) Aᵀ` `[tokens, r]`.
///
/// # Errors
/// If shapes do not fit or there is no version for the tensor's device.
pub fn forward(x: &Tensor, weight: &Weight, lora: Option<&Lora<'_>>) -> Result<(Tensor, Option<Tensor>)> {
    forward_as(cpu::Product::Blocked, x, weight, None, lora)
}

/// [`forward`] for generation: a token's numbers are the same, bit for bit, alone and among others, and a
/// weight is read once and not copied.
///
/// # Errors
/// As [`forward`].
pub fn forward_by_row(x: &Tensor, weight: &Weight, lora: Option<&Lora<'_>>) -> Result<Tensor> {
    forward_stored(x, weight, None, lora)
}

/// [`forward_by_row`] that reads the weight as `stored` has it, where that is given: of the same values, the
/// same bits.
pub fn forward_stored(
    x: &Tensor,
    weight: &Weight,
    stored: Option<&Stored>,
    lora: Option<&Lora<'_>>,
) -> Result<Tensor> {
    Ok(forward_as(cpu::Product::ByRow, x, weight, stored, lora)?.0)
}

fn forward_as(
    product: cpu::Product,
    x: &Tensor,
    weight: &Weight,
    stored: Option<&Stored>,
    lora: Option<&Lora<'_>>,
) -> Result<(Tensor, Option<Tensor>)> {
    let sizes = check(x, weight, lora)?;
    let mut y = vec![0.0; sizes.tokens * sizes.outs];
    let u = host::read(x, |x| {
        match stored.filter(|stored| stored.dims() == (sizes.outs, sizes.ins)) {
            Some(stored) => cpu::forward_stored(x, stored, &sizes, &mut y),
            None => weight.read(|w| {
                cpu::forward(product, x, w, &sizes, &mut y);
                Ok(())
            })?,
        }
        let Some(lora) = lora else { return Ok(None) };
        host::read(lora.a, |a| {
            host::read(lora.b, |b| {
                let mut u = vec![0.0; sizes.tokens * sizes.rank];
                cpu::lora_forward(product, x, (a, b), lora, &sizes, &mut y, &mut u);
                Ok(Some(u))
            })
        })
    })?;
    let u = u.map(|u| host::tensor(u, (sizes.tokens, sizes.rank))).transpose()?;
    Ok((host::tensor(y, (sizes.tokens, sizes.outs))?, u))
}

/// The gradient of [`forward`] for `x`; weight gradients are added where `gradients` says.
///
/// # Errors
/// As [`forward`]; also if `gradients.dw` is given for an NF4 weight.
pub fn backward(
    dy: &Tensor,
    x: &Tensor,
    u: Option<&Tensor>,
    weight: &Weight,
    lora: Option<&Lora<'_>>,
    gradients: Gradients<'_>,
) -> Result<Tensor> {
    let sizes = check(x, weight, lora)?;
    if dy.dims() != [sizes.tokens, sizes.outs] {
        candle_core::bail!("lora_linear: dy is {:?} for {} × {}", dy.dims(), sizes.tokens, sizes.outs)
    }
    let mut dx = vec![0.0; sizes.tokens * sizes.ins];
    host::read(dy, |dy| {
        weight.read(|w| {
            cpu::backward(dy, w, &sizes, &mut dx);
            Ok(())
        })?;
        host::read(x, |x| {
            if let Some(dw) = gradients.dw {
                if matches!(weight, Weight::Nf4(_)) {
                    candle_core::bail!("lora_linear: an NF4 weight is frozen and has no gradient")
                }
                host::update(dw, |dw| {
                    cpu::weight_gradient(dy, x, &sizes, dw);
                    Ok(())
                })?;
            }
            let (Some(lora), Some(u)) = (lora, u) else { return Ok(()) };
            let mut da = vec![0.0; sizes.rank * sizes.ins];
            let mut db = vec![0.0; sizes.outs * sizes.rank];
            host::read(lora.a, |a| {
                host::read(lora.b, |b| {
                    host::read(u, |u| {
                        let lora = cpu::LoraSlices {
                            a,
                            b,
                            u,
                            scale: lora.scale as f32,
                            dropout: lora.dropout.as_ref(),
                        };
                        cpu::lora_backward(dy, x, &lora, &sizes, &mut dx, &mut da, &mut db);
                        Ok(())
                    })
                })
            })?;
            for (target, gradient) in [(gradients.da, da), (gradients.db, db)] {
                if let Some(target) = target {
                    host::update(target, |t| {
                        t.iter_mut().zip(&gradient).for_each(|(t, g)| *t += g);
                        Ok(())
                    })?;
                }
            }
            Ok(())
        })
    })?;
    host::tensor(dx, (sizes.tokens, sizes.ins))
}

/// Sizes read off the tensors.
struct Sizes {
    tokens: usize,
    ins: usize,
    outs: usize,
    rank: usize,
}

fn check(x: &Tensor, weight: &Weight, lora: Option<&Lora<'_>>) -> Result<Sizes> {
    host::require_cpu_f32("lora_linear", x)?;
    let (tokens, ins) = x.dims2()?;
    let (outs, w_ins) = weight.dims2()?;
    if ins != w_ins {
        candle_core::bail!("lora_linear: x has {ins} features, the weight takes {w_ins}")
    }
    let rank = match lora {
        None => 0,
        Some(lora) => {
            let rank = lora.a.dims2()?.0;
            if lora.a.dims() != [rank, ins] || lora.b.dims() != [outs, rank] {
                candle_core::bail!(
                    "lora_linear: A {:?} and B {:?} do not fit a weight of [{outs}, {ins}]",
                    lora.a.dims(),
                    lora.b.dims()
                )
            }
            rank
        }
    };
    Ok(Sizes { tokens, ins, outs, rank })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    #[test]
    fn gradients_agree_with_finite_differences() -> Result<()> {
        for dropout in [None, Some(Dropout { p: 0.4, seed: 7, stream: 3 })] {
            let (x, w) = (random(1, (5, 6))?, random(2, (4, 6))?);
            let (a, b, g) = (random(3, (2, 6))?, random(4, (4, 2))?, random(5, (5, 4))?);
            let loss = |x: &Tensor, w: &Tensor, a: &Tensor, b: &Tensor| {
                let lora = Lora { a, b, scale: 1.5, dropout };
                (forward(x, &Weight::from(w.clone()), Some(&lora))?.0 * &g)?.sum_all()
            };
            let lora = Lora { a: &a, b: &b, scale: 1.5, dropout };
            let weight = Weight::from(w.clone());
            let (_, u) = forward(&x, &weight, Some(&lora))?;
            let (dw, da, db) = (w.zeros_like()?, a.zeros_like()?, b.zeros_like()?);
            let gradients = Gradients { dw: Some(&dw), da: Some(&da), db: Some(&db) };
            let dx = backward(&g, &x, u.as_ref(), &weight, Some(&lora), gradients)?;
            Check::new("x").run(&x, &dx, |x| loss(x, &w, &a, &b))?;
            Check::new("w").run(&w, &dw, |w| loss(&x, w, &a, &b))?;
            Check::new("a").run(&a, &da, |a| loss(&x, &w, a, &b))?;
            Check::new("b").run(&b, &db, |b| loss(&x, &w, &a, b))?;
        }
        Ok(())
    }

    #[test]
    fn nf4_computes_with_the_rounded_weight_and_stays_frozen() -> Result<()> {
        let (x, w) = (random(1, (3, 64))?, random(2, (5, 64))?);
        let nf4 = Nf4Tensor::quantize(&w, 64)?;
        let (y, _) = forward(&x, &Weight::Nf4(nf4.clone()), None)?;
        let (expected, _) = forward(&x, &Weight::from(nf4.dequantize()?), None)?;
        assert_eq!(y.to_vec2::<f32>()?, expected.to_vec2::<f32>()?);
        let dw = w.zeros_like()?;
        let gradients = Gradients { dw: Some(&dw), ..Gradients::default() };
        assert!(backward(&y, &x, None, &Weight::Nf4(nf4), None, gradients).is_err());
        Ok(())
    }

    #[test]
    fn by_row_is_the_same_product() -> Result<()> {
        let (x, w) = (random(1, (7, 33))?, random(2, (9, 33))?);
        let (a, b) = (random(3, (2, 33))?, random(4, (9, 2))?);
        let lora = Lora { a: &a, b: &b, scale: 1.5, dropout: None };
        let weight = Weight::from(w);
        for lora in [None, Some(&lora)] {
            let (all, by_row) = (forward(&x, &weight, lora)?.0, forward_by_row(&x, &weight, lora)?);
            let error = (all - &by_row)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-5, "{error}");
            let alone = forward_by_row(&x.narrow(0, 4, 1)?, &weight, lora)?;
            assert_eq!(alone.to_vec2::<f32>()?, by_row.narrow(0, 4, 1)?.to_vec2::<f32>()?);
        }
        Ok(())
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() -> Result<()> {
        let (x, w) = (random(1, (3, 4))?, random(2, (5, 6))?);
        assert!(forward(&x, &Weight::from(w), None).is_err());
        Ok(())
    }
}
