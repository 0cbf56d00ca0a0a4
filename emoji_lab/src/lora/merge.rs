//! An adapter added into the weights of its base.

use std::path::Path;

use candle_core::Tensor;

use super::adapter::Adapter;
use super::adapter_checks::same_values;
use crate::display::say;
use crate::error::{Error, Result};
use crate::model::token_rows::put_rows;
use crate::model::{Gemma3, Model, Param, Parameter};
use crate::ops::lora_linear::Weight;

/// `base` with the adapter of the folder `adapter` merged in: `W + scale · B A` for every adapted
/// layer, and the trained embedding and head in place of the base's. `base` stays as it is.
///
/// The folder may be that of `save_model`, a `checkpoint-N`, or one that PEFT wrote. The base's weights
/// are taken as they are, as PEFT's `merge_and_unload` does. An adapter that was trained on NF4 belongs
/// into what that makes of them, which is what [`quantize`](super::quantize) gives: into the exact weights
/// the sum is another model than the one that was trained.
///
/// # Errors
/// [`Error::Model`] if the folder is not an adapter, or one of another model.
pub fn merge_adapters(base: &Model, adapter: impl AsRef<Path>) -> Result<Model> {
    let folder = adapter.as_ref();
    let adapter = Adapter::load(folder)?;
    if let Some(warning) = adapter.config.base_warning(&base.origin) {
        say(format_args!("{}: {warning}", folder.display()));
    }
    let gemma = merge_into(&base.gemma, &adapter)?;
    if base.gemma.config().tie_word_embeddings && !gemma.config().tie_word_embeddings {
        say("the adapter trained head and embedding apart: the merged model is untied");
    }
    Ok(Model { gemma, origin: folder.display().to_string(), ..base.clone() })
}

/// [`merge_adapters`] for a network and an adapter in memory.
///
/// # Errors
/// [`Error::Model`] if the adapter is of another model, or holds values that are not finite.
pub fn merge_into(base: &Gemma3, adapter: &Adapter) -> Result<Gemma3> {
    adapter.check_fits(base.config())?;
    let mut gemma = base.clone();
    let get = |parameter: Parameter| adapter.tensors.get(&parameter.name()).cloned();
    for layer in &mut gemma.layers {
        let index = layer.index;
        for (which, linear) in layer.linears_mut() {
            let (a, b) = (get(Parameter::LoraA(index, which)), get(Parameter::LoraB(index, which)));
            let weight = linear.weight.dense()?;
            let (Some(a), Some(b)) = (a, b) else {
                linear.weight = Weight::Dense(weight);
                continue;
            };
            let mut merged =
                (weight.to_tensor()? + (b.matmul(&a)? * adapter.config.module_scaling(index, which))?)?;
            if let Some(magnitude) = get(Parameter::LoraMagnitude(index, which)) {
                merged = with_lengths(&merged, &magnitude)?;
            }
            if !merged.sum_all()?.to_scalar::<f32>()?.is_finite() {
                return Err(not_finite(&which.module_path(index)));
            }
            linear.weight = merged.into();
        }
    }
    let (embedding, head) = (get(Parameter::EmbedTokens), get(Parameter::LmHead));
    for (parameter, tensor) in [(Parameter::EmbedTokens, &embedding), (Parameter::LmHead, &head)] {
        if let Some(tensor) = tensor
            && !tensor.sum_all()?.to_scalar::<f32>()?.is_finite()
        {
            return Err(not_finite(&parameter.name()));
        }
    }
    match adapter.config.lora.trains_embeddings() {
        true => merge_whole(&mut gemma, embedding, head, adapter.config.tied)?,
        false => put_beside(&mut gemma, embedding, head)?,
    }
    for (parameter, ids) in adapter.config.token_rows() {
        let Some(rows) = get(parameter) else { continue };
        if !rows.sum_all()?.to_scalar::<f32>()?.is_finite() {
            return Err(not_finite(&parameter.name()));
        }
        if parameter == Parameter::EmbedTokensRows {
            // A head that is the embedding learns with it.
            gemma.embed_tokens = Param::frozen(put_rows(&gemma.embed_tokens.value.to_tensor()?, ids, &rows)?);
        } else {
            let head = put_rows(&base.head().value.to_tensor()?, ids, &rows)?;
            gemma.lm_head = Some(Param::frozen(head));
            gemma.config.tie_word_embeddings = false;
        }
    }
    Ok(gemma)
}

fn not_finite(name: &str) -> Error {
    Error::model(
        "adapter",
        format!("merged, {name} holds values that are not finite"),
        "Its training diverged, or its file is damaged: take another checkpoint",
    )
}

/// Rows of the lengths `magnitude` [out_features] (or with an axis of 1 beside it), in the directions of
/// `weight`'s: weight-decomposed LoRA.
fn with_lengths(weight: &Tensor, magnitude: &Tensor) -> Result<Tensor> {
    let rows = weight.dim(0)?;
    if magnitude.elem_count() != rows {
        let problem = format!("lora_magnitude_vector has shape {:?}, for {rows} rows", magnitude.dims());
        return Err(Error::model("adapter", problem, "The adapter's file is damaged"));
    }
    let lengths = weight.sqr()?.sum_keepdim(1)?.sqrt()?;
    Ok(weight.broadcast_mul(&(magnitude.reshape((rows, 1))? / lengths)?)?)
}

/// Puts in an embedding and a head that were saved beside an adapter which did not train them, as PEFT
/// does where the vocabulary was made larger: a tied model stays tied.
fn put_beside(gemma: &mut Gemma3, embedding: Option<Tensor>, head: Option<Tensor>) -> Result<()> {
    let is_tied = gemma.lm_head.is_none();
    if let (true, Some(embedding), Some(head)) = (is_tied, &embedding, &head)
        && !same_values(embedding, head)?
    {
        return Err(Error::model(
            "adapter",
            "it holds an embedding and another head, which it did not train, and the base model ties them",
            "Take both out of the adapter's file, or merge it into the model it was made with",
        ));
    }
    match (is_tied, embedding, head) {
        (true, embedding, head) => {
            if let Some(both) = embedding.or(head) {
                gemma.embed_tokens = Param::frozen(both);
            }
        }
        (false, embedding, head) => {
            if let Some(embedding) = embedding {
                gemma.embed_tokens = Param::frozen(embedding);
            }
            if let Some(head) = head {
                gemma.lm_head = Some(Param::frozen(head));
            }
        }
    }
    Ok(())
}

/// Puts the trained embedding and head in place of the base's; `tied` says that they are one tensor.
fn merge_whole(
    gemma: &mut Gemma3,
    embedding: Option<Tensor>,
    head: Option<Tensor>,
    tied: bool,
) -> Result<()> {
    if tied && (head.is_some() || embedding.is_some()) && gemma.lm_head.is_some() {
        // An adapter that trained them as one tensor, on a base that holds two.
        return Err(Error::model(
            "adapter",
            "it was trained with head and embedding tied, the base model keeps them apart",
            "Merge it into the model it was trained on",
        ));
    }
    let trained_apart = !tied && gemma.lm_head.is_none() && (head.is_some() || embedding.is_some());
    if trained_apart {
        // As PEFT: what was trained is a copy, and the other one keeps the base's values.
        let other = gemma.embed_tokens.value.clone();
        gemma.lm_head = Some(Param::frozen(other));
        gemma.config.tie_word_embeddings = false;
    }
    if let Some(embedding) = embedding {
        gemma.embed_tokens = Param::frozen(embedding);
    }
    if let Some(head) = head.filter(|_| !tied) {
        gemma.lm_head = Some(Param::frozen(head));
    }
    Ok(())
}
