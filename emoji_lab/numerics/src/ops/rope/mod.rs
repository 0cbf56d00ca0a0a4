//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in transformers' layout: the
//! first half of a head is rotated against the second half.

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

use candle_core::{Result, Tensor};

use crate::host;
pub use cpu::head;

/// The angle of each pair of a head at position 1: `1 / factor / theta^(2i / head_dim)`.
pub fn frequencies(head_dim: usize, theta: f64, factor: f64) -> Vec<f32> {
    let frequency = |i| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64) / factor) as f32;
    (0..head_dim / 2).map(frequency).collect()
}

/// Cosine and sine of a pair's angle at `position`.
#[inline]
pub fn turn(position: u32, frequency: f32) -> (f32, f32) {
    let angle = position as f32 * frequency;
    (angle.cos(), angle.sin())
}

/// Cosines and sines of a batch's positions for one RoPE base.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// `[tokens, head_dim / 2]`, row-major.
    cos: Tensor,
    /// The same for sines.
    sin: Tensor,
}

impl RopeTable {
    /// Angles `positions[t] / factor / theta^(2i / head_dim)` for every token and pair `i`.
    ///
    /// # Errors
    /// If `head_dim` is odd.
    pub fn new(positions: &[u32], head_dim: usize, theta: f64, factor: f64) -> Result<Self> {
        if !head_dim.is_multiple_of(2) {
            candle_core::bail!("rope: head_dim {head_dim} is odd")
        }
        let half = head_dim / 2;
        let frequencies = frequencies(head_dim, theta, factor);
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            positions.iter().flat_map(|&p| frequencies.iter().map(move |f| turn(p, *f))).unzip();
        let shape = (positions.len(), half);
        Ok(Self { cos: host::tensor(cos, shape)?, sin: host::tensor(sin, shape)? })
    }

    /// Cosines and sines, `[tokens, head_dim / 2]` each.
    #[cfg(feature = "cuda")]
    pub fn tables(&self) -> (&Tensor, &Tensor) {
        (&self.cos, &self.sin)
    }
}

/// Rotates `x` `[tokens, heads, head_dim]` by the table's angles.
///
/// # Errors
/// If shapes do not fit or there is no version for the tensor's device.
pub fn forward(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    rotate(x, table, 1.0)
}

/// The gradient of [`forward`]: a rotation is orthogonal, so it is the rotation back.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, table: &RopeTable) -> Result<Tensor> {
    rotate(dy, table, -1.0)
}

fn rotate(x: &Tensor, table: &RopeTable, direction: f32) -> Result<Tensor> {
    host::require_cpu_f32("rope", x)?;
    let (tokens, heads, head_dim) = x.dims3()?;
    if table.cos.dims() != [tokens, head_dim / 2] {
        candle_core::bail!("rope: a table of {:?} for a tensor of {:?}", table.cos.dims(), x.dims())
    }
    let out = host::read(x, |x| {
        host::read(&table.cos, |cos| {
            host::read(&table.sin, |sin| Ok(cpu::rotate(x, cos, sin, heads, head_dim, direction)))
        })
    })?;
    host::tensor(out, (tokens, heads, head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    #[test]
    fn rotating_back_undoes_it_and_is_the_gradient() -> Result<()> {
        let table = RopeTable::new(&[0, 5, 77], 6, 10_000.0, 1.0)?;
        let (x, g) = (random(1, (3, 2, 6))?, random(2, (3, 2, 6))?);
        let back = backward(&forward(&x, &table)?, &table)?;
        let error = (back - &x)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < 1e-6, "{error}");
        Check::new("x").run(&x, &backward(&g, &table)?, |x| (forward(x, &table)? * &g)?.sum_all())
    }

    #[test]
    fn an_odd_head_is_refused() {
        assert!(RopeTable::new(&[0], 5, 10_000.0, 1.0).is_err());
    }
}
