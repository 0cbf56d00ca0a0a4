//! All trained parameters, their gradients and their moments, each in one flat tensor.

use candle_core::{DType, Tensor};

#[cfg(feature = "cuda")]
use crate::cuda::DeviceArena;
use crate::error::{Error, Result};
use crate::model::{Gemma3, ParameterMut};
use crate::ops::host;

/// Where a parameter lies in the arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// transformers' (PEFT's) name.
    pub name: String,
    /// First element.
    pub offset: usize,
    /// Shape.
    pub dims: Vec<usize>,
}

impl Slot {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether AdamW's weight decay applies to it: not to biases and norms, as transformers' Trainer
    /// has it (`get_decay_parameter_names`). Adapters, head and embedding decay.
    pub fn decays(&self) -> bool {
        let name = self.name.to_lowercase();
        let is_norm = |part: &str| part == "norm" || part.ends_with("_norm");
        !["bias", "layernorm", "rmsnorm"].iter().any(|kind| name.contains(kind))
            && !name.split('.').any(is_norm)
    }

    /// Its elements' places in the arena.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }

    pub(super) fn view(&self, flat: &Tensor) -> Result<Tensor> {
        Ok(flat.narrow(0, self.offset, self.len())?.reshape(self.dims.as_slice())?)
    }
}

/// One of an arena's flat tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// Parameters.
    Values,
    /// Gradients.
    Gradients,
    /// AdamW's first moment.
    ExpAvg,
    /// AdamW's second moment.
    ExpAvgSq,
}

/// The trained parameters. The model's tensors are views into `values`, the places where it adds
/// gradients views into `gradients`, so an optimizer step is one pass over four flat tensors.
///
/// In training on a GPU these tensors are only where it started from, and what counts is on the
/// card: [`Arena::read`] and [`Arena::write`] go there.
#[derive(Debug)]
pub struct Arena {
    slots: Vec<Slot>,
    /// Elements without weight decay, in order. A GPU trains none of them.
    no_decay: Vec<std::ops::Range<usize>>,
    /// Parameters, flat f32.
    pub values: Tensor,
    /// Gradients.
    pub gradients: Tensor,
    /// AdamW's first moment.
    pub exp_avg: Tensor,
    /// AdamW's second moment.
    pub exp_avg_sq: Tensor,
    /// The arena on the card, in training on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) device: Option<std::sync::Arc<DeviceArena>>,
}

impl Arena {
    /// Moves the parameters of `model` whose names `trained` picks into a new arena.
    ///
    /// The model must be a clone of its own: tensors are replaced, not changed, so other clones
    /// keep the values they have.
    ///
    /// # Errors
    /// [`Error::Training`] if nothing is picked.
    pub fn new(model: &mut Gemma3, trained: &dyn Fn(&str) -> bool) -> Result<Self> {
        let mut slots = vec![];
        let mut starts = vec![];
        let mut offset = 0;
        model.visit_parameters(&mut |p: ParameterMut<'_>| {
            if trained(&p.name) {
                let slot = Slot { name: p.name, offset, dims: p.value.dims().to_vec() };
                offset += slot.len();
                slots.push(slot);
                starts.push(p.value.to_dtype(DType::F32)?.flatten_all()?);
            }
            Ok(())
        })?;
        if starts.is_empty() {
            return Err(Error::training(
                "no parameter is trained",
                "Give LoraConfig target_modules or modules_to_save, or train without a LoraConfig",
            ));
        }
        let values = Tensor::cat(&starts, 0)?.contiguous()?;
        // With one part, `cat` hands the part back: a view of the frozen model's memory.
        let values = if starts.len() == 1 { values.force_contiguous()? } else { values };
        drop(starts);
        let zeros = || values.zeros_like();
        let arena = Self {
            gradients: zeros()?,
            exp_avg: zeros()?,
            exp_avg_sq: zeros()?,
            values: values.clone(),
            no_decay: slots.iter().filter(|slot| !slot.decays()).map(Slot::range).collect(),
            slots,
            #[cfg(feature = "cuda")]
            device: None,
        };
        let mut slots = arena.slots.iter();
        model.visit_parameters(&mut |p: ParameterMut<'_>| {
            if trained(&p.name)
                && let Some(slot) = slots.next()
            {
                *p.value = slot.view(&arena.values)?;
                *p.gradient = Some(slot.view(&arena.gradients)?);
            }
            Ok(())
        })?;
        Ok(arena)
    }

    /// The parameters' places, in order.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The elements that weight decay does not apply to, in order.
    pub fn no_decay(&self) -> &[std::ops::Range<usize>] {
        &self.no_decay
    }

    /// Number of trained parameters.
    pub fn len(&self) -> usize {
        self.values.elem_count()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the gradients of the last step.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn zero_gradients(&self) -> Result<()> {
        Ok(self.gradients.zero_set()?)
    }

    fn host(&self, buffer: Buffer) -> &Tensor {
        match buffer {
            Buffer::Values => &self.values,
            Buffer::Gradients => &self.gradients,
            Buffer::ExpAvg => &self.exp_avg,
            Buffer::ExpAvgSq => &self.exp_avg_sq,
        }
    }

    /// A parameter's part of `buffer`, as a copy that later steps do not change. (Not candle's
    /// `copy`, which would copy the whole arena that the view is of.)
    ///
    /// # Errors
    /// If the device fails.
    pub fn read(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            return Ok(host::tensor(device.read(buffer, slot.offset, slot.len())?, slot.dims.as_slice())?);
        }
        Ok(slot.view(self.host(buffer))?.force_contiguous()?)
    }

    /// A parameter's part of `buffer` to be read at once: on the CPU without a copy, so the next step
    /// changes it.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(super) fn peek(&self, buffer: Buffer, slot: &Slot) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if self.device.is_some() {
            return self.read(buffer, slot);
        }
        slot.view(self.host(buffer))
    }

    /// Overwrites a parameter's part of `buffer`.
    ///
    /// # Errors
    /// If the length is not the slot's, or the device fails.
    pub fn write(&self, buffer: Buffer, slot: &Slot, tensor: &Tensor) -> Result<()> {
        let values = tensor.to_dtype(DType::F32)?.flatten_all()?;
        if values.elem_count() != slot.len() {
            return Err(Error::training(
                format!("{} values for {}, which has {}", values.elem_count(), slot.name, slot.len()),
                "The file is of another model",
            ));
        }
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            return device.write(buffer, slot.offset, &values.to_vec1::<f32>()?);
        }
        Ok(self.host(buffer).slice_set(&values, 0, slot.offset)?)
    }

    /// A parameter's values, as a copy.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn value(&self, slot: &Slot) -> Result<Tensor> {
        self.read(Buffer::Values, slot)
    }

    /// A parameter's gradient, as a copy.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn gradient(&self, slot: &Slot) -> Result<Tensor> {
        self.read(Buffer::Gradients, slot)
    }

    /// Overwrites the parameter `name`.
    ///
    /// # Errors
    /// [`Error::Training`] if there is none of that name and shape.
    pub fn set(&self, name: &str, value: &Tensor) -> Result<()> {
        let slot = self.slots.iter().find(|s| s.name == name && s.dims == value.dims()).ok_or_else(|| {
            Error::training(
                format!("{name} of shape {:?} is not among the trained parameters", value.dims()),
                "The adapter was made for other LoRA settings or another model",
            )
        })?;
        self.write(Buffer::Values, slot, value)
    }

    /// Checks that every trained parameter got a gradient.
    ///
    /// A parameter that the backward pass forgets keeps a gradient of exact zeros, and the run
    /// looks healthy all the same. So in the first two steps every one is looked at: it must be
    /// finite, and by step 2 not all zero. (At step 1 LoRA's A has none, since B is zero.)
    ///
    /// # Errors
    /// [`Error::Training`] that names the parameter.
    pub fn check_gradients(&self, step: usize) -> Result<()> {
        #[cfg(feature = "cuda")]
        let on_card = self.device.as_ref().map(|device| device.gradient_squares(&self.slots)).transpose()?;
        #[cfg(not(feature = "cuda"))]
        let on_card: Option<Vec<f64>> = None;
        for (i, slot) in self.slots.iter().enumerate() {
            let squares = match &on_card {
                Some(squares) => squares[i],
                None => host::read(&slot.view(&self.gradients)?.flatten_all()?, |g| {
                    Ok(g.iter().map(|g| f64::from(*g) * f64::from(*g)).sum())
                })?,
            };
            let (finite, zero) = (squares.is_finite(), squares == 0.0);
            if !finite {
                return Err(Error::training(
                    format!("the gradient of {} is not finite at step {step}", slot.name),
                    "Lower learning_rate, or check the model's weights and the dataset",
                ));
            }
            let may_be_zero = step < 2 && slot.name.ends_with("lora_A.weight");
            if zero && !may_be_zero {
                return Err(Error::training(
                    format!("{} got no gradient at step {step}: it is not being trained", slot.name),
                    "No row of the batch has a target behind its first two tokens: give longer rows; if they \
                     have, this is a fault of emoji_lab",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_biases_do_not_decay() {
        let decays = |name: &str| Slot { name: name.into(), offset: 0, dims: vec![1] }.decays();
        let peft = "base_model.model.model.";
        for (name, expected) in [
            ("model.norm.weight", false),
            ("model.layers.0.input_layernorm.weight", false),
            ("model.layers.0.post_feedforward_layernorm.weight", false),
            ("model.layers.0.self_attn.q_norm.weight", false),
            ("norm", false),
            ("a.RMSNorm.weight", false),
            ("lm_head.bias", false),
            ("model.embed_tokens.weight", true),
            ("lm_head.weight", true),
            ("model.layers.0.self_attn.q_proj.weight", true),
            ("model.normalizer.weight", true),
            (&format!("{peft}layers.0.mlp.up_proj.lora_A.weight"), true),
            (&format!("{peft}embed_tokens.weight"), true),
        ] {
            assert_eq!(decays(name), expected, "{name}");
        }
    }
}
