use rayon::prelude::*;

use crate::ops::math::wide;

/// Elements a task takes: a fixed number, so that the sum does not depend on the thread count.
const CHUNK: usize = 16 * 1024;

pub(super) fn sum_of_squares(g: &[f32]) -> f64 {
    let parts: Vec<f64> = g.par_chunks(CHUNK).map(of_part).collect();
    parts.iter().sum()
}

wide! {
    fn of_part(part: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let mut chunks = part.chunks_exact(8);
        for chunk in &mut chunks {
            for (lane, g) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*g) * f64::from(*g);
            }
        }
        lanes.iter().sum::<f64>() + chunks.remainder().iter().map(|g| f64::from(*g).powi(2)).sum::<f64>()
    }
}
