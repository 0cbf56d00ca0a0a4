//! The gate of Gemma's MLP: `y = gelu_tanh(gate) · up` (Shazeer 2020, arXiv:2002.05202;
//! tanh form of GELU: Hendrycks & Gimpel 2016, arXiv:1606.08415).

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

use candle_core::{Result, Tensor};

use crate::host;
pub use cpu::gate;

/// `gelu_tanh(gate) · up`, element by element; `gate` and `up` have one shape.
///
/// # Errors
/// If shapes differ or there is no version for the tensor's device.
pub fn forward(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    check(gate, up)?;
    let y = host::read(gate, |gate| host::read(up, |up| Ok(cpu::forward(gate, up))))?;
    host::tensor(y, gate.shape())
}

/// The gradients of [`forward`] for `gate` and for `up`.
///
/// # Errors
/// As [`forward`].
pub fn backward(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Result<(Tensor, Tensor)> {
    check(gate, up)?;
    check(dy, up)?;
    let (dgate, dup) =
        host::read(dy, |dy| host::read(gate, |gate| host::read(up, |up| Ok(cpu::backward(dy, gate, up)))))?;
    Ok((host::tensor(dgate, gate.shape())?, host::tensor(dup, up.shape())?))
}

fn check(gate: &Tensor, up: &Tensor) -> Result<()> {
    host::require_cpu_f32("geglu", gate)?;
    if gate.dims() != up.dims() {
        candle_core::bail!("geglu: gate is {:?}, up is {:?}", gate.dims(), up.dims())
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    #[test]
    fn agrees_with_candle_and_with_finite_differences() -> Result<()> {
        let shape = (3, 11);
        let (gate, up, g) = (random(1, shape)?, random(2, shape)?, random(3, shape)?);
        let error = (forward(&gate, &up)? - (gate.gelu()? * &up)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < 1e-6, "{error}");
        let (dgate, dup) = backward(&g, &gate, &up)?;
        let loss = |gate: &Tensor, up: &Tensor| (forward(gate, up)? * &g)?.sum_all();
        Check::new("gate").run(&gate, &dgate, |gate| loss(gate, &up))?;
        Check::new("up").run(&up, &dup, |up| loss(&gate, up))
    }

    #[test]
    fn far_out_values_stay_finite() -> Result<()> {
        let gate = Tensor::new(&[-1e4f32, -50.0, 50.0, 1e4], &candle_core::Device::Cpu)?;
        let one = gate.ones_like()?;
        let y = forward(&gate, &one)?.to_vec1::<f32>()?;
        assert!(y[..2].iter().all(|y| y.abs() < 1e-30), "{y:?}");
        assert_eq!(y[2..], [50.0, 1e4]);
        let (dgate, _) = backward(&one, &gate, &one)?;
        let dgate = dgate.to_vec1::<f32>()?;
        assert!(dgate[..2].iter().all(|d| d.abs() < 1e-30), "{dgate:?}");
        assert_eq!(dgate[2..], [1.0, 1.0]);
        Ok(())
    }
}
