//! What generation on the CPU reads: weights in as few bits as there are.
//!
//! It reads every weight for every token, as fast as memory gives it: of four bits an eighth of the bytes that f32
//! has, of bf16 half. The values are the same, so the logits are, bit for bit; but for blocks on a processor that
//! multiplies them with whole numbers, where what they are multiplied with is rounded to sixteen bits
//! ([`Stored`]). What came from a file in few bits is still in them ([`LazyTensor`]); of plain values that are exactly bf16
//! a copy is made here.
//!
//! A copy is found by its tensor's identity. A tensor that is trained, merged or exchanged is another one, and is
//! read itself.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::TensorId;

use super::Gemma3;
use crate::error::Result;
use crate::host;
use crate::ops::gemm::Stored;
use crate::ops::lazy::LazyTensor;
use crate::ops::lora_linear::Weight;

/// Copies of matrices in few bits, by their tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct StoredWeights(HashMap<TensorId, Arc<Stored>>);

impl StoredWeights {
    /// `weight` in few bits: what it is made of, or its copy.
    pub(crate) fn get<'a>(&'a self, weight: &'a LazyTensor) -> Option<&'a Stored> {
        weight.stored().or_else(|| self.0.get(&weight.dense()?.id()).map(Arc::as_ref))
    }
}

/// Matrices that generation multiplies with: the linear layers' that are dense, and the head.
fn matrices(model: &Gemma3) -> impl Iterator<Item = &LazyTensor> {
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

/// Copies in bf16 of the model's plain matrices that are exactly that. A model that is being trained gets none: they
/// would cost it memory.
pub(super) fn for_generation(model: &Gemma3) -> Result<Arc<StoredWeights>> {
    let mut copies = HashMap::new();
    if !is_trained(model) {
        for weight in matrices(model).filter(|weight| weight.stored().is_none()) {
            let dims = weight.dims2()?;
            if let Some(copy) = host::read(weight, |values| Ok(Stored::bf16(values, dims)))? {
                copies.insert(weight.id(), Arc::new(copy));
            }
        }
    }
    Ok(Arc::new(StoredWeights(copies)))
}
