//! One linear layer of the model: its weight, its adapter, and the places of their gradients.

use candle_core::Tensor;

use super::stored::StoredWeights;
use crate::error::Result;
use crate::ops::lazy::LazyTensor;
use crate::ops::lora_linear::{self, Dropout, Gradients, Lora, Weight};

/// A tensor that may be trained.
#[derive(Debug, Clone)]
pub struct Param {
    /// The values; while trained, a view into the optimizer's arena.
    pub value: LazyTensor,
    /// Where the backward pass adds the gradient; `None` while frozen.
    pub gradient: Option<Tensor>,
}

impl Param {
    /// A frozen tensor.
    pub fn frozen(value: impl Into<LazyTensor>) -> Self {
        Self { value: value.into(), gradient: None }
    }
}

/// A low-rank adapter on a [`Linear`].
#[derive(Debug, Clone)]
pub struct LoraAdapter {
    /// `[r, in_features]`.
    pub a: Param,
    /// `[out_features, r]`.
    pub b: Param,
    /// `lora_alpha / r`.
    pub scale: f64,
    /// Share of A's input dropped in training.
    pub dropout: f64,
}

/// A linear layer without bias, with an adapter where it is a target of LoRA.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// Where the gradient of a dense weight is added; `None` while frozen.
    pub weight_gradient: Option<Tensor>,
    /// The adapter.
    pub lora: Option<LoraAdapter>,
    /// The layer's number in the model, by which dropout's random stream goes.
    pub number: usize,
}

/// The randomness of one training forward pass; each layer takes a stream of its own from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// The number of this forward pass in the run.
    pub pass: u64,
}

impl DropoutKey {
    fn dropout(self, p: f64, linear: usize) -> Dropout {
        Dropout { p, seed: self.seed, stream: (self.pass << 16) | linear as u64 }
    }
}

impl Linear {
    /// A frozen dense layer, the `number`th of the model.
    pub fn frozen(weight: impl Into<LazyTensor>, number: usize) -> Self {
        Self { weight: Weight::Dense(weight.into()), weight_gradient: None, lora: None, number }
    }

    /// The same layer as one dense matrix, f32: the weight out of NF4, and `scale · B A` added to it.
    pub(crate) fn merged(&self) -> Result<Self> {
        let weight = self.weight.dense()?;
        let Some(lora) = &self.lora else { return Ok(Self::frozen(weight, self.number)) };
        let added = (lora.b.value.matmul(&lora.a.value)? * lora.scale)?;
        Ok(Self::frozen((weight.to_tensor()? + added)?, self.number))
    }

    fn lora(&self, key: Option<DropoutKey>) -> Option<Lora<'_>> {
        self.lora.as_ref().map(|l| Lora {
            a: &l.a.value,
            b: &l.b.value,
            scale: l.scale,
            dropout: key.filter(|_| l.dropout > 0.0).map(|key| key.dropout(l.dropout, self.number)),
        })
    }

    /// The layer on `x` `[tokens, in_features]`: `y`, and the adapter's `u` that [`Self::backward`] needs.
    /// `key` is given in training only.
    pub(crate) fn forward(&self, x: &Tensor, key: Option<DropoutKey>) -> Result<(Tensor, Option<Tensor>)> {
        Ok(lora_linear::forward(x, &self.weight, self.lora(key).as_ref())?)
    }

    /// The layer in generation, on `x` `[tokens, in_features]`: each token's `y` as if it were alone.
    /// The weight is read as `stored` has it, if it does.
    pub(crate) fn decode(&self, x: &Tensor, stored: &StoredWeights) -> Result<Tensor> {
        let stored = match &self.weight {
            Weight::Dense(weight) => stored.get(weight),
            Weight::Nf4(_) => None,
        };
        Ok(lora_linear::forward_stored(x, &self.weight, stored, self.lora(None).as_ref())?)
    }

    /// The gradient for `x`; the parameters' are added in their places.
    pub(crate) fn backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        u: Option<&Tensor>,
        key: Option<DropoutKey>,
    ) -> Result<Tensor> {
        let gradients = Gradients {
            dw: self.weight_gradient.as_ref(),
            da: self.lora.as_ref().and_then(|l| l.a.gradient.as_ref()),
            db: self.lora.as_ref().and_then(|l| l.b.gradient.as_ref()),
        };
        let lora = self.lora(key);
        Ok(lora_linear::backward(dy, x, u, &self.weight, lora.as_ref(), gradients)?)
    }
}
