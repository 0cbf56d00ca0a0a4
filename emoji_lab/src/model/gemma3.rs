//! Gemma 3's decoder: forward, backward, and decoding with a cache (Gemma Team 2025,
//! arXiv:2503.19786; the layer order is transformers' `Gemma3ForCausalLM`).

use candle_core::Tensor;

use super::layer::{DecoderLayer, LINEARS, LayerTape, NORMS, Pass};
use super::linear::{DropoutKey, Linear, Param};
use super::on_device::OnDevice;
use super::{Gemma3Config, PackedTokens, Weights};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::linear_cross_entropy::{self, LossSum};
use crate::ops::lora_linear::Weight;
use crate::ops::rope::RopeTable;
use crate::ops::{embedding, lora_linear, rms_norm};

/// A Gemma 3 text model.
///
/// Cloning is cheap: tensors are shared, until one of the clones is made trainable.
#[derive(Debug, Clone)]
pub struct Gemma3 {
    pub(crate) config: Gemma3Config,
    pub(crate) device: Device,
    pub(crate) embed_tokens: Param,
    pub(crate) layers: Vec<DecoderLayer>,
    pub(crate) norm: Param,
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

/// A parameter of the model, as [`Gemma3::visit_parameters`] shows it: its values, and the place
/// of its gradient.
pub(crate) struct ParameterMut<'a> {
    pub(crate) name: String,
    pub(crate) value: &'a mut Tensor,
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
        let get = |name: &str, dims: &[usize]| -> Result<Tensor> { Ok(weights.get(name, dims)?.clone()) };
        let (queries, keys) = (c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim);
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let linear_dims = [
            [queries, hidden],
            [keys, hidden],
            [keys, hidden],
            [hidden, queries],
            [inner, hidden],
            [inner, hidden],
            [hidden, inner],
        ];
        let norm_dims = [hidden, c.head_dim, c.head_dim, hidden, hidden, hidden];
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for (index, &layer_type) in c.layer_types.iter().enumerate() {
            let mut linears = Vec::with_capacity(LINEARS.len());
            for (name, dims) in LINEARS.iter().zip(&linear_dims) {
                linears.push(Linear::frozen(get(&parameter_name(index, name), dims)?));
            }
            let mut norms = Vec::with_capacity(NORMS.len());
            for (name, &dim) in NORMS.iter().zip(&norm_dims) {
                norms.push(Param::frozen(get(&parameter_name(index, name), &[dim])?));
            }
            let (Ok(linears), Ok(norms)) = (linears.try_into(), norms.try_into()) else {
                return Err(Error::model(
                    &weights.origin,
                    "a layer has another number of tensors",
                    "This is a fault of emoji_lab",
                ));
            };
            layers.push(DecoderLayer { index, layer_type, linears, norms });
        }
        let embedding_dims = [c.vocab_size, hidden];
        Ok(Self {
            device: device.clone(),
            embed_tokens: Param::frozen(get("model.embed_tokens.weight", &embedding_dims)?),
            layers,
            norm: Param::frozen(get("model.norm.weight", &[hidden])?),
            lm_head: match c.tie_word_embeddings {
                true => None,
                false => Some(Param::frozen(get("lm_head.weight", &embedding_dims)?)),
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

    /// Gives back the memory that [`Self::prepare_device`] took on the GPU. The model can still be
    /// asked: it is put there again.
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

    /// Every dense parameter with transformers' name (PEFT's for adapters), in a fixed order.
    /// Weights in NF4 are not among them: they cannot be trained.
    pub(crate) fn visit_parameters(
        &mut self,
        f: &mut dyn FnMut(ParameterMut<'_>) -> Result<()>,
    ) -> Result<()> {
        fn param(name: String, p: &mut Param) -> ParameterMut<'_> {
            ParameterMut { name, value: &mut p.value, gradient: &mut p.gradient }
        }
        f(param("model.embed_tokens.weight".into(), &mut self.embed_tokens))?;
        if let Some(head) = &mut self.lm_head {
            f(param("lm_head.weight".into(), head))?;
        }
        for layer in &mut self.layers {
            for (name, linear) in LINEARS.iter().zip(&mut layer.linears) {
                if let Weight::Dense(value) = &mut linear.weight {
                    let name = parameter_name(layer.index, name);
                    f(ParameterMut { name, value, gradient: &mut linear.weight_gradient })?;
                }
                if let Some(lora) = &mut linear.lora {
                    let path = format!("model.layers.{}.{name}", layer.index);
                    f(param(format!("{path}.lora_A.weight"), &mut lora.a))?;
                    f(param(format!("{path}.lora_B.weight"), &mut lora.b))?;
                }
            }
            for (name, norm) in NORMS.iter().zip(&mut layer.norms) {
                f(param(parameter_name(layer.index, name), norm))?;
            }
        }
        f(param("model.norm.weight".into(), &mut self.norm))
    }

    /// Parameters by transformers' names, adapters left out, NF4 weights unpacked.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn named_weights(&self) -> Result<Weights> {
        let mut weights = Weights::default();
        let mut put = |name: String, value: Tensor| weights.tensors.insert(name, value);
        put("model.embed_tokens.weight".into(), self.embed_tokens.value.clone());
        if let Some(head) = &self.lm_head {
            put("lm_head.weight".into(), head.value.clone());
        }
        for layer in &self.layers {
            for (name, linear) in LINEARS.iter().zip(&layer.linears) {
                let value = match &linear.weight {
                    Weight::Dense(value) => value.clone(),
                    Weight::Nf4(packed) => packed.dequantize()?,
                };
                put(parameter_name(layer.index, name), value);
            }
            for (name, norm) in NORMS.iter().zip(&layer.norms) {
                put(parameter_name(layer.index, name), norm.value.clone());
            }
        }
        put("model.norm.weight".into(), self.norm.value.clone());
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
        Ok(embedding::forward(ids, &self.embed_tokens.value, self.embedding_scale())?)
    }

    fn embedding_scale(&self) -> f64 {
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
        let (hidden, last_rstd) = rms_norm::forward(&x, &self.norm.value, self.config.rms_norm_eps)?;
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
        Ok(rms_norm::forward(&x, &self.norm.value, self.config.rms_norm_eps)?.0)
    }

    /// Adds every trained parameter's gradient in its place, given the one for the last hidden
    /// states `[tokens, hidden]`.
    ///
    /// # Errors
    /// If the tape is not of this model and these tokens.
    pub fn backward(&self, tokens: &PackedTokens, tape: Tape, d_hidden: &Tensor) -> Result<()> {
        let pass = Pass {
            config: &self.config,
            segments: &tokens.segments,
            global: &tape.global,
            local: &tape.local,
            dropout: tape.dropout,
        };
        let mut dx = rms_norm::backward(
            d_hidden,
            &tape.last,
            &self.norm.value,
            &tape.last_rstd,
            self.norm.gradient.as_ref(),
        )?;
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
        if let Some(gradient) = &self.embed_tokens.gradient {
            embedding::backward(&tokens.ids, &dx, self.embedding_scale(), gradient)?;
        }
        Ok(())
    }

    /// The summed loss of `tokens`; `targets[t]` is what token t is to predict
    /// ([`crate::ops::IGNORE_INDEX`] for nothing).
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss(&self, tokens: &PackedTokens, targets: &[i64]) -> Result<LossSum> {
        let hidden = self.hidden_states(tokens)?;
        Ok(linear_cross_entropy::loss(&hidden, &self.head().value, targets)?)
    }

    /// [`Self::loss`] in training: also adds every trained parameter's gradient, times `factor`.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn loss_and_backward(
        &self,
        tokens: &PackedTokens,
        targets: &[i64],
        factor: f64,
        dropout: Option<DropoutKey>,
    ) -> Result<LossSum> {
        let (hidden, tape) = self.forward(tokens, dropout)?;
        let head = self.head();
        let (loss, d_hidden) = linear_cross_entropy::loss_and_gradient(
            &hidden,
            &head.value,
            targets,
            factor,
            head.gradient.as_ref(),
        )?;
        self.backward(tokens, tape, &d_hidden)?;
        Ok(loss)
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`.
    ///
    /// # Errors
    /// If the width is not the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(lora_linear::forward(hidden, &Weight::Dense(self.head().value.clone()), None)?.0)
    }
}

/// The name of a layer's parameter, as `model.layers.3.self_attn.q_proj.weight`.
pub(crate) fn parameter_name(layer: usize, module: &str) -> String {
    format!("model.layers.{layer}.{module}.weight")
}
