//! RMSNorm with its weight.

use candle_core::Tensor;

use super::linear::Param;
use crate::error::Result;
use crate::ops::rms_norm;

/// A norm of the model. Gemma multiplies with one plus the weight.
#[derive(Debug, Clone)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Param,
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// The rows of `x` `[rows, width]` normalised, and the `rstd` that [`Self::backward`] needs.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(rms_norm::forward(x, &self.weight.value, self.eps)?)
    }

    /// The gradient for `x`; the weight's is added in its place.
    pub(crate) fn backward(&self, dy: &Tensor, x: &Tensor, rstd: &Tensor) -> Result<Tensor> {
        Ok(rms_norm::backward(dy, x, &self.weight.value, rstd, self.weight.gradient.as_ref())?)
    }

    /// [`Self::forward`] on every head of `x` `[tokens, heads · head_dim]` separately:
    /// `[tokens, heads, head_dim]`.
    pub(crate) fn forward_heads(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (tokens, width) = x.dims2()?;
        let dim = self.weight.value.dim(0)?;
        let (y, rstd) = self.forward(&x.reshape((tokens * width / dim, dim))?)?;
        Ok((y.reshape((tokens, width / dim, dim))?, rstd))
    }

    /// The gradient for the `x` of [`Self::forward_heads`].
    pub(crate) fn backward_heads(&self, dy: &Tensor, x: &Tensor, rstd: &Tensor) -> Result<Tensor> {
        let (tokens, heads, dim) = dy.dims3()?;
        let rows = (tokens * heads, dim);
        let dx = self.backward(&dy.reshape(rows)?, &x.reshape(rows)?, rstd)?;
        Ok(dx.reshape((tokens, heads * dim))?)
    }
}
