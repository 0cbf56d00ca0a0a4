//! All trained parameters, their gradients and their moments, each in one flat tensor.

use candle_core::{DType, Tensor};

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

    pub(super) fn view(&self, flat: &Tensor) -> Result<Tensor> {
        Ok(flat.narrow(0, self.offset, self.len())?.reshape(self.dims.as_slice())?)
    }
}

/// The trained parameters. The model's tensors are views into `values`, the places where it adds
/// gradients views into `gradients`, so an optimizer step is one pass over four flat tensors.
#[derive(Debug)]
pub struct Arena {
    slots: Vec<Slot>,
    /// Parameters, flat f32.
    pub values: Tensor,
    /// Gradients.
    pub gradients: Tensor,
    /// AdamW's first moment.
    pub exp_avg: Tensor,
    /// AdamW's second moment.
    pub exp_avg_sq: Tensor,
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
            slots,
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

    /// A parameter's values, as a copy that later steps do not change. (Not candle's `copy`, which
    /// would copy the whole arena that the view is of.)
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn value(&self, slot: &Slot) -> Result<Tensor> {
        Ok(slot.view(&self.values)?.force_contiguous()?)
    }

    /// A parameter's gradient, as a copy.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn gradient(&self, slot: &Slot) -> Result<Tensor> {
        Ok(slot.view(&self.gradients)?.force_contiguous()?)
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
        let values = value.to_dtype(DType::F32)?.flatten_all()?;
        Ok(self.values.slice_set(&values, 0, slot.offset)?)
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
        for slot in &self.slots {
            let gradient = slot.view(&self.gradients)?.flatten_all()?;
            let (finite, zero) = host::read(&gradient, |g| {
                Ok((g.iter().all(|g| g.is_finite()), g.iter().all(|g| *g == 0.0)))
            })?;
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
                    "This is a fault of emoji_lab, or no row of the batch has a target",
                ));
            }
        }
        Ok(())
    }
}
