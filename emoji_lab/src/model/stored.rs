//! Weights as the model's file has them, beside the f32 tensors that are made of them.
//!
//! Training, the GPU and files take the tensors. Generation on the CPU reads every weight for every token, as
//! fast as memory gives it: of four bits an eighth of the bytes that f32 has, of bf16 half. The values are the
//! same, so the logits are, bit for bit.
//!
//! A weight is found by its tensor's identity. A tensor that is trained, merged or exchanged is another one, and is
//! read itself.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::Gemma3;
use super::gguf::Kind;
use crate::error::Result;
use crate::host;
use crate::memory::Memory;
use crate::ops::gemm::Stored;
use crate::ops::lora_linear::Weight;

/// Matrices of a model by their tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredWeights(HashMap<TensorId, Arc<Stored>>);

impl StoredWeights {
    /// The matrix that `tensor` was made of.
    pub(crate) fn get(&self, tensor: &Tensor) -> Option<&Stored> {
        self.0.get(&tensor.id()).map(Arc::as_ref)
    }

    /// `tensor` was made of the blocks of `memory` in `range`.
    pub(super) fn insert(&mut self, tensor: &Tensor, kind: Kind, memory: &Arc<Memory>, range: Range<usize>) {
        if let Ok(dims) = tensor.dims2()
            && let Some(stored) = Stored::new(kind, memory.clone(), range, dims)
        {
            self.0.insert(tensor.id(), Arc::new(stored));
        }
    }
}

/// Matrices that generation multiplies with: the linear layers' that are dense, and the head.
fn matrices(model: &Gemma3) -> impl Iterator<Item = &Tensor> {
    let linears = model.linears().filter_map(|linear| match &linear.weight {
        Weight::Dense(weight) => Some(weight),
        Weight::Nf4(_) => None,
    });
    linears.chain([&model.head().value])
}

/// Whether any of the model's parameters is being trained.
fn is_trained(model: &Gemma3) -> bool {
    let rows = model.token_rows.as_ref().map(|rows| &rows.rows);
    let whole = [Some(&model.embed_tokens), rows, model.lm_head.as_ref(), Some(&model.norm.weight)];
    let adapters = model.linears().filter_map(|linear| linear.lora.as_ref());
    let norms = model.layers.iter().flat_map(|layer| layer.norms()).map(|(_, norm)| &norm.weight);
    model.linears().any(|linear| linear.weight_gradient.is_some())
        || whole.into_iter().flatten().any(|param| param.gradient.is_some())
        || norms.into_iter().any(|param| param.gradient.is_some())
        || adapters.into_iter().any(|lora| lora.a.gradient.is_some() || lora.b.gradient.is_some())
}

/// What the model generates with on the CPU: the blocks of its file and, of what has none and is exactly bf16, a
/// copy in bf16. A model that is being trained gets no copies: they would cost it memory.
pub(super) fn for_generation(model: &Gemma3) -> Result<Arc<StoredWeights>> {
    if is_trained(model) {
        return Ok(model.stored.clone());
    }
    let mut copies = HashMap::new();
    for tensor in matrices(model).filter(|tensor| model.stored.get(tensor).is_none()) {
        let dims = tensor.dims2()?;
        if let Some(copy) = host::read(tensor, |values| Ok(Stored::bf16(values, dims)))? {
            copies.insert(tensor.id(), Arc::new(copy));
        }
    }
    if copies.is_empty() {
        return Ok(model.stored.clone());
    }
    copies.extend(model.stored.0.iter().map(|(id, stored)| (*id, stored.clone())));
    Ok(Arc::new(StoredWeights(copies)))
}
