//! Gradients checked against central differences.

use candle_core::{Device, Result, Shape, Tensor};

/// Seeded values in about ±1.
pub(crate) fn random(seed: u64, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let values = (0..shape.elem_count())
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// One input's gradient, to be compared.
pub(crate) struct Check<'a> {
    name: &'a str,
    /// Largest allowed norm of the difference, as a share of the norm of the gradient.
    tolerance: f64,
}

impl<'a> Check<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        Self { name, tolerance: 5e-3 }
    }

    /// Compares `gradient` with (loss(x + h) − loss(x − h)) / 2h, element by element.
    pub(crate) fn run(
        &self,
        x: &Tensor,
        gradient: &Tensor,
        loss: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<()> {
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let ours = gradient.flatten_all()?.to_vec1::<f32>()?;
        let h = 1e-2f32;
        let (mut difference, mut norm) = (0.0f64, 0.0f64);
        for i in 0..values.len() {
            let at = |step: f32| -> Result<f64> {
                let mut moved = values.clone();
                moved[i] += step;
                Ok(loss(&Tensor::from_vec(moved, x.shape(), &Device::Cpu)?)?.to_scalar::<f32>()? as f64)
            };
            // Fourth order: the error of the plain central difference would hide small faults.
            let theirs = (8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h as f64);
            difference += (theirs - ours[i] as f64).powi(2);
            norm += theirs.powi(2);
        }
        let error = difference.sqrt() / norm.sqrt().max(1e-3);
        assert!(error < self.tolerance, "gradient of {}: relative error {error:.2e}", self.name);
        Ok(())
    }
}
