//! The global norm of all gradients, and the factor that clips it
//! (Pascanu et al. 2012, arXiv:1211.5063; constants as `torch.nn.utils.clip_grad_norm_`).

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod head;
#[cfg(all(test, feature = "cuda"))]
mod head_tests;

use candle_core::{Result, Tensor};

use crate::host;

/// `sqrt(Σ g²)` over a flat tensor.
///
/// # Errors
/// If there is no version for the tensor's device.
pub fn global_norm(gradients: &Tensor) -> Result<f64> {
    host::require_cpu_f32("grad_norm", gradients)?;
    host::read(gradients, |g| Ok(cpu::sum_of_squares(g).sqrt()))
}

/// What gradients are multiplied by so that their norm is at most `max_norm`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn norm_and_clipping() -> Result<()> {
        let g = Tensor::new(&[3.0f32, 0.0, -4.0], &Device::Cpu)?;
        assert_eq!(global_norm(&g)?, 5.0);
        assert!((clip_factor(5.0, 1.0) - 0.2).abs() < 1e-6);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        Ok(())
    }
}
