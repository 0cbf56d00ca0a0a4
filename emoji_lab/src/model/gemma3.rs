//! Gemma 3's decoder: forward, backward, and decoding with a cache (Gemma Team 2025,
//! arXiv:2503.19786; the layer order is transformers' `Gemma3ForCausalLM`).

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;

use super::layer::{DecoderLayer, LayerTape, Pass};
use super::linear::{DropoutKey, Linear, Param};
use super::norm::RmsNorm;
use super::on_device::OnDevice;
use super::parameters::Parameter;
use super::token_rows::TokenRows;
use super::{Gemma3Config, PackedTokens, Weights};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::embedding;
use crate::ops::lazy::LazyTensor;
use crate::ops::linear_cross_entropy::Head;
use crate::ops::lora_linear::Weight;
use crate::ops::replaced::Replaced;
use crate::ops::rope::RopeTable;

/// A Gemma 3 text model.
///
/// Cloning is cheap: tensors are shared, until one of the clones is made trainable.
#[derive(Debug, Clone)]
pub struct Gemma3 {
    pub(crate) config: Gemma3Config,
    pub(crate) device: Device,
    pub(crate) embed_tokens: Param,
    /// What stands in place of some of the embedding's rows.
    pub(crate) token_rows: Option<TokenRows>,
    pub(crate) layers: Vec<DecoderLayer>,
    pub(crate) norm: RmsNorm,
    /// `None` where the head is the embedding.
    pub(crate) lm_head: Option<Param>,
    pub(super) on_device: OnDevice,
}

/// What the backward pass needs of a forward pass.
#[derive(Debug)]
pub struct Tape {
    layers: Vec<LayerTape>,
    last: Tensor,
    last_rstd: Tensor,
    global: RopeTable,
    local: RopeTable,
    dropout: Option<DropoutKey>,
}

/// A parameter of the model, as [`Gemma3::visit_parameters`] shows it: which it is, its values, and the
/// place of its gradient.
pub(crate) struct ParameterMut<'a> {
    pub(crate) parameter: Parameter,
    pub(crate) value: &'a mut LazyTensor,
    pub(crate) gradient: &'a mut Option<Tensor>,
}

impl Gemma3 {
    /// The model of `config` with `weights`, on `device`.
    ///
    /// A `lm_head.weight` that is not the embedding is used even if `config` says that they are
    /// tied; the model's own configuration says then that they are not.
    ///
    /// # Errors
    /// [`Error::Model`] that names the first tensor which is missing or has another shape.
    pub fn new(config: &Gemma3Config, weights: &Weights, device: &Device) -> Result<Self> {
        let mut config = config.clone();
        if weights.has_own_head(&config)? {
            config.tie_word_embeddings = false;
        }
        let c = &config;
        let layer = |(index, &layer_type)| DecoderLayer::new(index, layer_type, c, weights);
        let layers: Result<Vec<_>> = c.layer_types.iter().enumerate().map(layer).collect();
        let get = |parameter: Parameter| -> Result<Param> {
            Ok(Param::frozen(weights.get(&parameter.name(), &parameter.shape(c, 0))?))
        };
        Ok(Self {
            device: device.clone(),
            layers: layers?,
            embed_tokens: get(Parameter::EmbedTokens)?,
            token_rows: None,
            norm: RmsNorm { weight: get(Parameter::FinalNorm)?, eps: c.rms_norm_eps },
            lm_head: match c.tie_word_embeddings {
                true => None,
                false => Some(get(Parameter::LmHead)?),
            },
            config,
            on_device: OnDevice::default(),
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Gemma3Config {
        &self.config
    }

    /// The same model, tensors shared, to be trained and asked on `device`.
    #[must_use]
    pub fn to_device(&self, device: &Device) -> Self {
        Self { device: device.clone(), ..self.clone() }
    }

    /// Puts the model on its GPU, which otherwise happens when it is first asked; nothing on the CPU.
    ///
    /// # Errors
    /// [`Error::Device`] if the card has too little memory.
    pub fn prepare_device(&self) -> Result<()> {
        self.on_device.with(self, |_| Ok(())).map(|_| ())
    }

    /// Gives back the memory that [`Self::prepare_device`] took on the GPU, or generation on the CPU for its
    /// weights in bf16. The model can still be asked: it is put there again.
    pub fn release_device(&self) {
        self.on_device.release();
    }

    /// Where the model is trained and generates. Its tensors stay in the host's memory; a GPU gets
    /// its own form of them.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The head's weight `[vocab, hidden]`: its own, or the embedding.
    pub(crate) fn head(&self) -> &Param {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Which parameter [`Self::head`] is.
    pub(crate) fn head_parameter(&self) -> Parameter {
        if self.lm_head.is_some() { Parameter::LmHead } else { Parameter::EmbedTokens }
    }

    /// The linear layers of all decoder layers, in order.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(DecoderLayer::linears).map(|(_, linear)| linear)
    }

    /// What stands in place of the head's rows.
    pub(super) fn rows_in_head(&self) -> Result<Option<Replaced<'_>>> {
        let rows = self.token_rows.as_ref().filter(|_| self.lm_head.is_none());
        rows.map(TokenRows::replaced).transpose()
    }

    /// The head with what stands in place of its rows, in f32.
    pub(super) fn head_weight(&self) -> Result<Head<'_>> {
        Ok(Head { weight: &self.head().value, replaced: self.rows_in_head()? })
    }

    /// The embedding's table, with the rows that stand in place of its own.
    fn whole_embedding(&self) -> Result<LazyTensor> {
        match &self.token_rows {
            None => Ok(self.embed_tokens.value.clone()),
            Some(rows) => Ok(rows.put_into(&self.embed_tokens.value.to_tensor()?)?.into()),
        }
    }

    /// The same model in dense matrices alone, adapters added in and nothing in NF4: what generates
    /// fastest.
    pub(crate) fn merged(&self) -> Result<Self> {
        let mut model = self.clone();
        if model.token_rows.is_some() {
            model.embed_tokens = Param::frozen(self.whole_embedding()?);
            model.token_rows = None;
        }
        model.layers.par_iter_mut().try_for_each(|layer| {
            for (_, linear) in layer.linears_mut() {
                *linear = linear.merged()?;
            }
            Ok::<_, Error>(())
        })?;
        Ok(model)
    }

    /// Every dense parameter, adapters among them, in a fixed order.
    /// Weights in NF4 are not among them: they cannot be trained.
    pub(crate) fn visit_parameters(
        &mut self,
        f: &mut dyn FnMut(ParameterMut<'_>) -> Result<()>,
    ) -> Result<()> {
        fn of(parameter: Parameter, p: &mut Param) -> ParameterMut<'_> {
            ParameterMut { parameter, value: &mut p.value, gradient: &mut p.gradient }
        }
        f(of(Parameter::EmbedTokens, &mut self.embed_tokens))?;
        if let Some(token_rows) = &mut self.token_rows {
            f(of(Parameter::EmbedTokensRows, &mut token_rows.rows))?;
        }
        if let Some(head) = &mut self.lm_head {
            f(of(Parameter::LmHead, head))?;
        }
        for layer in &mut self.layers {
            let index = layer.index;
            for (which, linear) in layer.linears_mut() {
                if let Weight::Dense(value) = &mut linear.weight {
                    let parameter = Parameter::Linear(index, which);
                    f(ParameterMut { parameter, value, gradient: &mut linear.weight_gradient })?;
                }
                if let Some(lora) = &mut linear.lora {
                    f(of(Parameter::LoraA(index, which), &mut lora.a))?;
                    f(of(Parameter::LoraB(index, which), &mut lora.b))?;
                }
            }
            for (which, norm) in layer.norms_mut() {
                f(of(Parameter::Norm(index, which), &mut norm.weight))?;
            }
        }
        f(of(Parameter::FinalNorm, &mut self.norm.weight))
    }

    /// Parameters by transformers' names, NF4 weights unpacked; adapters are left out, but rows of the
    /// embedding are put in.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn named_weights(&self) -> Result<Weights> {
        let mut weights = Weights::default();
        for (name, weight) in self.lazy_weights()? {
            weights.tensors.insert(name, weight.to_tensor()?);
        }
        Ok(weights)
    }

    /// [`Self::named_weights`], what stands in its file's form left so.
    pub(crate) fn lazy_weights(&self) -> Result<BTreeMap<String, LazyTensor>> {
        let mut weights = BTreeMap::new();
        let mut put = |parameter: Parameter, weight: LazyTensor| weights.insert(parameter.name(), weight);
        put(Parameter::EmbedTokens, self.whole_embedding()?);
        if let Some(head) = &self.lm_head {
            put(Parameter::LmHead, head.value.clone());
        }
        for layer in &self.layers {
            for (which, linear) in layer.linears() {
                put(Parameter::Linear(layer.index, which), linear.weight.dense()?);
            }
            for (which, norm) in layer.norms() {
                put(Parameter::Norm(layer.index, which), norm.weight.value.clone());
            }
        }
        put(Parameter::FinalNorm, self.norm.weight.value.clone());
        Ok(weights)
    }

    pub(crate) fn rope_tables(&self, positions: &[u32]) -> Result<(RopeTable, RopeTable)> {
        let c = &self.config;
        Ok((
            RopeTable::new(positions, c.head_dim, c.rope_theta, c.rope_scaling_factor)?,
            RopeTable::new(positions, c.head_dim, c.rope_local_base_freq, 1.0)?,
        ))
    }

    pub(super) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let rows = self.token_rows.as_ref().map(TokenRows::replaced).transpose()?;
        Ok(embedding::forward_replaced(ids, &self.embed_tokens.value, rows, self.embedding_scale())?)
    }

    pub(super) fn embedding_scale(&self) -> f64 {
        (self.config.hidden_size as f64).sqrt()
    }

    /// The last hidden states `[tokens, hidden]`, after the final norm, and what
    /// [`Self::backward`] needs. `dropout` is given in training only.
    ///
    /// # Errors
    /// If a token is outside the vocabulary.
    pub fn forward(&self, tokens: &PackedTokens, dropout: Option<DropoutKey>) -> Result<(Tensor, Tape)> {
        let (global, local) = self.rope_tables(&tokens.positions)?;
        let pass = Pass {
            config: &self.config,
            segments: &tokens.segments,
            global: &global,
            local: &local,
            dropout,
        };
        let mut x = self.embed(&tokens.ids)?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            let (out, tape) = layer.forward(x, &pass, None)?;
            layers.push(tape);
            x = out;
        }
        let (hidden, last_rstd) = self.norm.forward(&x)?;
        Ok((hidden, Tape { layers, last: x, last_rstd, global, local, dropout }))
    }

    /// The last hidden states alone: [`Self::forward`] without a tape, for evaluation.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn hidden_states(&self, tokens: &PackedTokens) -> Result<Tensor> {
        let (global, local) = self.rope_tables(&tokens.positions)?;
        let pass = Pass {
            config: &self.config,
            segments: &tokens.segments,
            global: &global,
            local: &local,
            dropout: None,
        };
        let mut x = self.embed(&tokens.ids)?;
        for layer in &self.layers {
            x = layer.forward(x, &pass, None)?.0;
        }
        Ok(self.norm.forward(&x)?.0)
    }

    /// Adds every trained parameter's gradient in its place, given the one for the last hidden
    /// states `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the tape is not of this model and these tokens.
    pub fn backward(&self, tokens: &PackedTokens, tape: Tape, d_hidden: &Tensor) -> Result<()> {
        let dx = self.backward_to_embedding(tokens, tape, d_hidden)?;
        if let Some(gradient) = &self.embed_tokens.gradient {
            embedding::backward(&tokens.ids, &dx, self.embedding_scale(), gradient)?;
        }
        if let Some(TokenRows { ids, rows }) = &self.token_rows
            && let Some(gradient) = &rows.gradient
        {
            embedding::backward_rows(&tokens.ids, &dx, self.embedding_scale(), ids, gradient)?;
        }
        Ok(())
    }

    /// [`Self::backward`] through the layers: the gradient for what the embedding gave.
    pub(super) fn backward_to_embedding(
        &self,
        tokens: &PackedTokens,
        tape: Tape,
        d_hidden: &Tensor,
    ) -> Result<Tensor> {
        let pass = Pass {
            config: &self.config,
            segments: &tokens.segments,
            global: &tape.global,
            local: &tape.local,
            dropout: tape.dropout,
        };
        let mut dx = self.norm.backward(d_hidden, &tape.last, &tape.last_rstd)?;
        // Popped, not iterated: a layer's tape is freed as soon as it has been used.
        let mut tapes = tape.layers;
        for layer in self.layers.iter().rev() {
            let Some(tape) = tapes.pop() else {
                return Err(Error::training(
                    "the tape has fewer layers than the model",
                    "This is a fault of emoji_lab",
                ));
            };
            dx = layer.backward(&dx, &tape, &pass)?;
        }
        Ok(dx)
    }
}
