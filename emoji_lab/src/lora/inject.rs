//! A base model made ready for training: quantised, with adapters on its linear layers.

use candle_core::{DType, Tensor};

use super::config::LoraConfig;
use crate::error::{Error, Result};
use crate::model::token_rows::TokenRows;
use crate::model::{Gemma3, LoraAdapter, Model, Param};
use crate::ops::lora_linear::Weight;
use crate::quant::{Nf4Tensor, QuantConfig};
use crate::rng::{Philox, streams};

/// `base` as QLoRA trains on it: its linear layers in NF4 if `quant` says so, rounding errors and all;
/// `base` itself stays as it is.
///
/// [`merge_adapters`](super::merge_adapters) into this gives the model that was trained: adapters learn to
/// make up for NF4's rounding, and in the exact weights there is none to make up for.
///
/// ```
/// use emoji_lab::prelude::*;
/// let base = load_model("embedded", &Device::Cpu)?;
/// let trained_on = quantize(&base, &QuantConfig::default())?;
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// [`Error::Setting`] for a `blocksize` that NF4 has not.
pub fn quantize(base: &Model, quant: &QuantConfig) -> Result<Model> {
    quant.validate()?;
    let mut gemma = base.gemma.clone();
    if quant.load_in_4bit {
        quantize_linears(&mut gemma, quant.blocksize)?;
    }
    Ok(Model { gemma, ..base.clone() })
}

/// Puts the linear layers into NF4, in blocks of `blocksize` values.
pub(crate) fn quantize_linears(model: &mut Gemma3, blocksize: usize) -> Result<()> {
    for (_, linear) in model.layers.iter_mut().flat_map(|layer| layer.linears_mut()) {
        if let Weight::Dense(weight) = &linear.weight {
            linear.weight = Weight::Nf4(Nf4Tensor::quantize(&weight.to_tensor()?, blocksize)?);
        }
    }
    Ok(())
}

/// Puts new adapters on the layers that `lora` names: A uniform in ±1/√in_features (kaiming-uniform with
/// a = √5, as PEFT initialises it), B zero.
pub(crate) fn add_adapters(model: &mut Gemma3, lora: &LoraConfig, seed: u64) -> Result<()> {
    let device = candle_core::Device::Cpu;
    let mut random = Philox::new(seed, streams::INIT);
    let targets = lora.targets();
    for layer in &mut model.layers {
        for (_, linear) in layer.linears_mut().into_iter().filter(|(which, _)| targets.contains(which)) {
            let (outs, ins) = linear.weight.dims2()?;
            let bound = 1.0 / (ins as f32).sqrt();
            let a: Vec<f32> = (0..lora.r * ins).map(|_| (2.0 * random.next_f32() - 1.0) * bound).collect();
            linear.lora = Some(LoraAdapter {
                a: Param::frozen(Tensor::from_vec(a, (lora.r, ins), &device)?),
                b: Param::frozen(Tensor::zeros((outs, lora.r), DType::F32, &device)?),
                scale: lora.lora_alpha / lora.r as f64,
                dropout: lora.lora_dropout,
            });
        }
    }
    Ok(())
}

/// Puts the rows of the embedding that are trained beside its table; says whether there are any.
pub(crate) fn train_token_rows(model: &mut Gemma3, lora: &LoraConfig) -> Result<bool> {
    let indices = &lora.trainable_token_indices;
    if indices.is_none() {
        return Ok(false);
    }
    let Some(ids) = indices.ids() else {
        return Err(Error::setting(
            "trainable_token_indices",
            format!("{indices:?}"),
            "only SftTrainer knows which tokens occur: give TokenIndices::Ids here",
        ));
    };
    model.token_rows = Some(TokenRows::of(&model.embed_tokens.value, ids)?);
    Ok(true)
}

/// Whether the embedding and the head are trained; unties them where that is asked for.
pub(crate) fn train_embeddings(model: &mut Gemma3, lora: &LoraConfig) -> Result<bool> {
    if !lora.trains_embeddings() {
        return Ok(false);
    }
    if model.lm_head.is_none() && !lora.ensure_weight_tying {
        // Two copies, each trained on its own, as PEFT has it for a tied model.
        model.lm_head = Some(Param::frozen(model.embed_tokens.value.clone()));
        model.config.tie_word_embeddings = false;
    }
    Ok(true)
}
