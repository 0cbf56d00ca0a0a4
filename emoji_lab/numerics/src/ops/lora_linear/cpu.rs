use std::borrow::Cow;

use rayon::prelude::*;

use super::{Dropout, Lora, Sizes};
use crate::ops::gemm::{Mat, Matrix, Stored, matmul, products, row_products};

/// Elements of a dropout mask that a task makes; a multiple of 8.
const CHUNK: usize = 8 * 1024;

/// An adapter's values, and `u` as the forward pass left it.
pub(super) struct LoraSlices<'a> {
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
    pub(super) u: &'a [f32],
    pub(super) scale: f32,
    pub(super) dropout: Option<&'a Dropout>,
}

fn dropped<'a>(x: &'a [f32], dropout: Option<&Dropout>) -> Cow<'a, [f32]> {
    let Some(dropout) = dropout else { return Cow::Borrowed(x) };
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .enumerate()
        .for_each(|(i, (out, x))| dropout.apply(i * CHUNK, x, out));
    Cow::Owned(out)
}

/// How `x wᵀ` is computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Product {
    /// For many rows at once: in training.
    Blocked,
    /// Each row's numbers as if it were alone, and no weight copied: in generation.
    ByRow,
}

impl Product {
    /// `out = alpha · x wᵀ`, or `out += …` with `accumulate`; `x` `[.., k]`, `w` `[.., k]`.
    fn multiply(self, out: &mut [f32], accumulate: bool, alpha: f32, x: &[f32], w: &[f32], k: usize) {
        match self {
            Self::ByRow => row_products(out, accumulate, alpha, x, w, k),
            // An inner size of 0 does not say how many rows there are, and adds nothing.
            Self::Blocked if k == 0 => row_products(out, accumulate, alpha, x, w, k),
            Self::Blocked => {
                let (x, w) = (Mat::new(x, x.len() / k, k), Mat::new(w, w.len() / k, k));
                matmul(out, accumulate, alpha, x, w.t());
            }
        }
    }
}

pub(super) fn forward(product: Product, x: &[f32], w: &[f32], s: &Sizes, y: &mut [f32]) {
    product.multiply(y, false, 1.0, x, w, s.ins);
}

pub(super) fn forward_stored(x: &[f32], w: &Stored, s: &Sizes, y: &mut [f32]) {
    products(y, false, 1.0, x, Matrix::Stored(w), s.ins);
}

pub(super) fn lora_forward(
    product: Product,
    x: &[f32],
    (a, b): (&[f32], &[f32]),
    lora: &Lora<'_>,
    s: &Sizes,
    y: &mut [f32],
    u: &mut [f32],
) {
    let x = dropped(x, lora.dropout.as_ref());
    product.multiply(u, false, 1.0, &x, a, s.ins);
    product.multiply(y, true, lora.scale as f32, u, b, s.rank);
}

pub(super) fn backward(dy: &[f32], w: &[f32], s: &Sizes, dx: &mut [f32]) {
    matmul(dx, false, 1.0, Mat::new(dy, s.tokens, s.outs), Mat::new(w, s.outs, s.ins));
}

pub(super) fn weight_gradient(dy: &[f32], x: &[f32], s: &Sizes, dw: &mut [f32]) {
    matmul(dw, true, 1.0, Mat::new(dy, s.tokens, s.outs).t(), Mat::new(x, s.tokens, s.ins));
}

pub(super) fn lora_backward(
    dy: &[f32],
    x: &[f32],
    lora: &LoraSlices<'_>,
    s: &Sizes,
    dx: &mut [f32],
    da: &mut [f32],
    db: &mut [f32],
) {
    let dy = Mat::new(dy, s.tokens, s.outs);
    let mut du = vec![0.0; s.tokens * s.rank];
    matmul(&mut du, false, lora.scale, dy, Mat::new(lora.b, s.outs, s.rank));
    matmul(db, true, lora.scale, dy.t(), Mat::new(lora.u, s.tokens, s.rank));
    let du = Mat::new(&du, s.tokens, s.rank);
    let a = Mat::new(lora.a, s.rank, s.ins);
    matmul(da, true, 1.0, du.t(), Mat::new(&dropped(x, lora.dropout), s.tokens, s.ins));
    match lora.dropout {
        None => matmul(dx, true, 1.0, du, a),
        Some(dropout) => {
            let mut through = vec![0.0; dx.len()];
            matmul(&mut through, false, 1.0, du, a);
            let through = dropped(&through, Some(dropout));
            dx.par_chunks_mut(CHUNK)
                .zip(through.par_chunks(CHUNK))
                .for_each(|(dx, t)| dx.iter_mut().zip(t).for_each(|(dx, t)| *dx += t));
        }
    }
}
