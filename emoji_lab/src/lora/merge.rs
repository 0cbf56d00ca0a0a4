//! An adapter added into the weights of its base.

use std::path::Path;

use super::adapter::{Adapter, EMBED_TOKENS, LM_HEAD};
use crate::error::{Error, Result};
use crate::model::{Gemma3, LINEARS, Model, Param};
use crate::ops::lora_linear::Weight;

/// `base` with the adapter of the folder `adapter` merged in: `W + scale · B A` for every adapted
/// layer, and the trained embedding and head in place of the base's. `base` stays as it is.
///
/// The folder may be that of `save_model`, a `checkpoint-N`, or one that PEFT wrote. The base's
/// unrounded weights are taken, as PEFT's `merge_and_unload` on a full-precision base.
///
/// # Errors
/// [`Error::Model`] if the folder is not an adapter, or one of another model.
pub fn merge_adapters(base: &Model, adapter: impl AsRef<Path>) -> Result<Model> {
    let folder = adapter.as_ref();
    let adapter = Adapter::load(folder)?;
    let gemma = merge_into(&base.gemma, &adapter)?;
    Ok(Model { gemma, origin: folder.display().to_string(), ..base.clone() })
}

/// [`merge_adapters`] for a network and an adapter in memory.
///
/// # Errors
/// [`Error::Model`] if the adapter is of another model.
pub fn merge_into(base: &Gemma3, adapter: &Adapter) -> Result<Gemma3> {
    adapter.check_fits(base.config())?;
    let mut gemma = base.clone();
    let get = |name: &str| adapter.tensors.get(name).cloned();
    for layer in &mut gemma.layers {
        for (name, linear) in LINEARS.iter().zip(&mut layer.linears) {
            let path = format!("model.layers.{}.{name}", layer.index);
            let (a, b) = (get(&format!("{path}.lora_A.weight")), get(&format!("{path}.lora_B.weight")));
            let (Some(a), Some(b)) = (a, b) else { continue };
            let weight = match &linear.weight {
                Weight::Dense(weight) => weight.clone(),
                Weight::Nf4(weight) => weight.dequantize()?,
            };
            linear.weight = Weight::Dense((weight + (b.matmul(&a)? * adapter.config.scaling())?)?);
        }
    }
    if let Some(embedding) = get(EMBED_TOKENS) {
        gemma.embed_tokens = Param::frozen(embedding);
    }
    match get(LM_HEAD) {
        Some(head) if !adapter.config.tied => {
            gemma.lm_head = Some(Param::frozen(head));
            gemma.config.tie_word_embeddings = false;
        }
        // An adapter that trained them as one tensor, on a base that holds two.
        Some(_) if gemma.lm_head.is_some() => {
            return Err(Error::model(
                "adapter",
                "it was trained with head and embedding tied, the base model keeps them apart",
                "Merge it into the model it was trained on",
            ));
        }
        _ => {}
    }
    Ok(gemma)
}
