//! Sums of what runs beside one another: the residual stream, and gradients that meet again.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::host;

/// Numbers that are worth a task of their own.
const CHUNK: usize = 1 << 16;

/// `a + b`, of one shape.
///
/// (candle's sum wakes a pool of threads of its own, which turn while they wait for work.)
///
/// # Errors
/// If the shapes differ, or one of them is no contiguous f32 on the CPU.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.dims() != b.dims() {
        candle_core::bail!("a sum of {:?} and {:?}", a.dims(), b.dims())
    }
    let sum = host::read(a, |a| {
        host::read(b, |b| {
            let mut sum = vec![0.0; a.len()];
            let chunks = sum.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK)));
            chunks.for_each(|(sum, (a, b))| {
                for (sum, (a, b)) in sum.iter_mut().zip(a.iter().zip(b)) {
                    *sum = a + b;
                }
            });
            Ok(sum)
        })
    })?;
    host::tensor(sum, a.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::random;

    #[test]
    fn adds_what_has_one_shape() -> Result<()> {
        let (a, b) = (random(1, (300, 257))?, random(2, (300, 257))?);
        assert_eq!(add(&a, &b)?.to_vec2::<f32>()?, (&a + &b)?.to_vec2::<f32>()?);
        assert!(add(&a, &b.t()?.contiguous()?).is_err());
        Ok(())
    }
}
