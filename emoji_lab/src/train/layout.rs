//! Which parameters are trained, and where each lies in the flat buffers of an optimizer.

use std::ops::Range;

use candle_core::{DType, Tensor};

use crate::error::{Error, Result};
use crate::host;
use crate::model::{Gemma3, Parameter, ParameterMut};

/// Where a parameter lies in a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Which parameter it is.
    pub parameter: Parameter,
    /// Its name: transformers', or PEFT's of an adapter's.
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

    /// Whether AdamW's weight decay applies to it: not to norms, as transformers' Trainer has it
    /// (`get_decay_parameter_names`). Adapters, head and embedding decay.
    pub fn decays(&self) -> bool {
        !self.parameter.is_norm()
    }

    /// Whether it is of a LoRA adapter.
    pub(crate) fn is_adapter(&self) -> bool {
        self.parameter.is_adapter()
    }

    /// Whether it is the embedding or the head.
    pub(crate) fn is_embedding(&self) -> bool {
        self.parameter.is_embedding()
    }

    /// Its elements' places in the buffer.
    pub(super) fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }

    pub(super) fn view(&self, flat: &Tensor) -> Result<Tensor> {
        Ok(flat.narrow(0, self.offset, self.len())?.reshape(self.dims.as_slice())?)
    }
}

/// How many elements are the embedding's and the head's, or rows of them: they come first.
pub(crate) fn embedding_len(slots: &[Slot]) -> usize {
    let first = slots.iter().take_while(|slot| slot.is_embedding());
    first.last().map_or(0, |last| last.range().end)
}

/// One of the flat buffers that training needs, each as long as all trained parameters together.
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

/// The trained parameters, in order.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    slots: Vec<Slot>,
    no_decay: Vec<Range<usize>>,
}

impl Layout {
    /// The parameters of `model` that `trained` picks.
    ///
    /// # Errors
    /// [`Error::Training`] if nothing is picked.
    pub(super) fn of(model: &Gemma3, trained: &dyn Fn(Parameter) -> bool) -> Result<Self> {
        let mut slots: Vec<Slot> = vec![];
        model.clone().visit_parameters(&mut |p: ParameterMut<'_>| {
            let parameter = p.parameter;
            if trained(parameter) {
                let offset = slots.last().map_or(0, |last| last.range().end);
                slots.push(Slot { parameter, name: parameter.name(), offset, dims: p.value.dims().to_vec() });
            }
            Ok(())
        })?;
        if slots.is_empty() {
            return Err(Error::training(
                "no parameter is trained",
                "Give LoraConfig target_modules or modules_to_save, or train without a LoraConfig",
            ));
        }
        let no_decay = slots.iter().filter(|slot| !slot.decays()).map(Slot::range).collect();
        Ok(Self { slots, no_decay })
    }

    /// The parameters' places, in order.
    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The elements that weight decay does not apply to, in order.
    pub(super) fn no_decay(&self) -> &[Range<usize>] {
        &self.no_decay
    }

    /// Number of trained numbers.
    pub(super) fn len(&self) -> usize {
        self.slots.last().map_or(0, |last| last.range().end)
    }

    /// Calls `f` with every trained parameter of `model` and its place.
    pub(super) fn visit(
        &self,
        model: &mut Gemma3,
        f: &mut dyn FnMut(ParameterMut<'_>, &Slot) -> Result<()>,
    ) -> Result<()> {
        let mut slots = self.slots.iter().peekable();
        model.visit_parameters(&mut |p: ParameterMut<'_>| match slots
            .next_if(|slot| slot.parameter == p.parameter)
        {
            Some(slot) => f(p, slot),
            None => Ok(()),
        })
    }

    /// The parameters' values as `model` has them, flat f32, in memory of their own.
    pub(super) fn values_of(&self, model: &Gemma3) -> Result<Tensor> {
        let values = host::zeros(self.len())?;
        self.visit(&mut model.clone(), &mut |p, slot| {
            let own = p.value.to_tensor()?.to_dtype(DType::F32)?.flatten_all()?;
            Ok(values.slice_set(&own, 0, slot.offset)?)
        })?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Gemma3Config, LinearName};

    /// `get_decay_parameter_names` goes by names: not biases, nor what is called a norm.
    fn decays_in_transformers(name: &str) -> bool {
        let name = name.to_lowercase();
        let is_norm = |part: &str| part == "norm" || part.ends_with("_norm");
        !["bias", "layernorm", "rmsnorm"].iter().any(|kind| name.contains(kind))
            && !name.split('.').any(is_norm)
    }

    #[test]
    fn what_decays_is_what_decays_in_transformers() {
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
            assert_eq!(decays_in_transformers(name), expected, "{name}");
        }
        let config = Gemma3Config { tie_word_embeddings: false, ..Gemma3Config::default() };
        let adapters = LinearName::ALL
            .into_iter()
            .flat_map(|which| [Parameter::LoraA(3, which), Parameter::LoraB(3, which)]);
        for parameter in Parameter::all(&config).into_iter().chain(adapters) {
            let name = parameter.name();
            let expected = decays_in_transformers(&name);
            let slot = Slot { parameter, name, offset: 0, dims: vec![1] };
            assert_eq!(slot.decays(), expected, "{parameter}");
        }
    }
}
