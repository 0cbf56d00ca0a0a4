//! The seam between a model and the devices that it generates on.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::Gemma3;
use super::generate::Tokens;
use super::side_by_side::{Asked, SideBySide};
use super::stored::{StoredWeights, for_generation};
use crate::device::Device;
use crate::error::Result;
use crate::ops::sample::Rule;

/// A model on a device of its own, ready to generate.
pub(crate) trait Generator: Tokens + Send {
    /// Reads `prompt`; up to `limit` tokens that follow it, chosen by `rule`, can then be asked for.
    fn start(&mut self, prompt: &[u32], limit: usize, rule: &Rule) -> Result<()>;

    /// Room for the sequences `asked`, as many of them side by side as there is memory for. Logits are of
    /// the tokens `head`, where they are given: they are asked for then, and else tokens.
    fn side_by_side(&mut self, asked: &[Asked<'_>], head: Option<&[u32]>) -> Result<&mut dyn SideBySide>;
}

/// A device that brings a generator: implemented for it where that generator is, above the models.
#[cfg(feature = "cuda")]
pub(crate) trait BringsGenerator {
    /// The model's weights on the device; it has no adapters.
    fn generator(&self, model: &Gemma3) -> Result<Box<dyn Generator>>;
}

/// The generator of the model's device; `None` where the host's own tensors are asked.
fn generator(model: &Gemma3) -> Result<Option<Box<dyn Generator>>> {
    match model.device() {
        Device::Cpu => Ok(None),
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => {
            // What stands beside the model's matrices is a trainer's business there.
            let has_adapters = model.linears().any(|linear| linear.lora.is_some());
            let merged = match has_adapters || model.token_rows.is_some() {
                true => Some(model.merged()?),
                false => None,
            };
            gpu.generator(merged.as_ref().unwrap_or(model)).map(Some)
        }
    }
}

/// A model's form on its device, made when it is first asked for. A copy of the model has none: its
/// tensors may be exchanged, and the copy then makes its own.
#[derive(Default)]
pub(crate) struct OnDevice {
    elsewhere: Mutex<Option<Box<dyn Generator>>>,
    here: Mutex<Option<Arc<StoredWeights>>>,
}

impl OnDevice {
    /// Calls `f` with the generator of `model`, made first if there is none; `None` if its device has
    /// none.
    pub(super) fn with<R>(
        &self,
        model: &Gemma3,
        f: impl FnOnce(&mut dyn Generator) -> Result<R>,
    ) -> Result<Option<R>> {
        let mut there = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if there.is_none() {
            *there = generator(model)?;
        }
        match &mut *there {
            Some(generator) => f(generator.as_mut()).map(Some),
            None => Ok(None),
        }
    }

    /// The weights that `model` generates with on the CPU, made first if they are not there.
    pub(super) fn on_host(&self, model: &Gemma3) -> Result<Arc<StoredWeights>> {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        match &*here {
            Some(stored) => Ok(stored.clone()),
            None => Ok(here.insert(for_generation(model)?).clone()),
        }
    }

    /// Weights to generate with on the CPU in place of the model's own.
    #[cfg(test)]
    pub(super) fn set_on_host(&self, stored: Arc<StoredWeights>) {
        *self.here.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored);
    }

    /// Gives the memory back.
    pub(super) fn release(&self) {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.here.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Clone for OnDevice {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for OnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        write!(f, "OnDevice({there})")
    }
}
