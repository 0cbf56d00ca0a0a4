use rayon::prelude::*;

use crate::ops::math::{dot, wide};

/// Rows a task takes: enough work to be worth handing out.
const ROWS: usize = 64;

wide! {
    /// One row of [`forward`](super::forward): writes `y`, returns `rstd`.
    pub fn row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
        let rstd = 1.0 / (dot(x, x) / w.len() as f32 + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * rstd * (1.0 + w);
        }
        rstd
    }
}

wide! {
    /// One row of [`backward`].
    fn row_back(dy: &[f32], x: &[f32], w: &[f32], rstd: f32, dx: &mut [f32]) {
        for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(w) {
            *dx = dy * (1.0 + w);
        }
        let mean = dot(dx, x) * rstd / w.len() as f32;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = rstd * (*dx - x * rstd * mean);
        }
    }
}

wide! {
    /// What a row adds to the weight's gradient.
    fn row_back_weight(dy: &[f32], x: &[f32], rstd: f32, dw: &mut [f32]) {
        for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
            *dw += dy * x * rstd;
        }
    }
}

pub(super) fn forward(x: &[f32], w: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let width = w.len();
    let mut y = vec![0.0; x.len()];
    let mut rstd = vec![0.0; x.len() / width];
    y.par_chunks_mut(ROWS * width).zip(rstd.par_chunks_mut(ROWS)).zip(x.par_chunks(ROWS * width)).for_each(
        |((y, rstd), x)| {
            for ((y, rstd), x) in y.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
                *rstd = row(x, w, eps, y);
            }
        },
    );
    (y, rstd)
}

/// With n = x · rstd and g = dy · (1 + w): dx = rstd · (g − n · mean(g · n)).
pub(super) fn backward(dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32]) -> Vec<f32> {
    let width = w.len();
    let mut dx = vec![0.0; x.len()];
    dx.par_chunks_mut(ROWS * width)
        .zip(dy.par_chunks(ROWS * width))
        .zip(x.par_chunks(ROWS * width))
        .zip(rstd.par_chunks(ROWS))
        .for_each(|(((dx, dy), x), rstd)| {
            let rows =
                dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width)).zip(rstd);
            for (((dx, dy), x), rstd) in rows {
                row_back(dy, x, w, *rstd, dx);
            }
        });
    dx
}

pub(super) fn backward_weight(dy: &[f32], x: &[f32], rstd: &[f32], dw: &mut [f32]) {
    let width = dw.len();
    for ((dy, x), rstd) in dy.chunks_exact(width).zip(x.chunks_exact(width)).zip(rstd) {
        row_back_weight(dy, x, *rstd, dw);
    }
}
