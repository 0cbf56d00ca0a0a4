//! The seam between a model and the devices that it generates on.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Gemma3;
use super::generate::Tokens;
use super::side_by_side::{Asked, SideBySide};
use super::stored::{StoredWeights, for_generation};
use crate::device::Device;
use crate::error::{Error, Result};
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
    /// The model's weights on each of these of its devices, by number; it has no adapters.
    fn generators(&self, model: &Gemma3, numbers: Range<usize>) -> Result<Vec<Box<dyn Generator>>>;
}

/// Generators of these of the model's devices; `None` where the host's own tensors are asked.
fn generators(model: &Gemma3, _numbers: Range<usize>) -> Result<Option<Vec<Box<dyn Generator>>>> {
    match model.device() {
        Device::Cpu | Device::CpuBf16 => Ok(None),
        #[cfg(feature = "cuda")]
        Device::Cuda(gpu) => {
            // What stands beside the model's matrices is a trainer's business there.
            let has_adapters = model.linears().any(|linear| linear.lora.is_some());
            let merged = match has_adapters || model.token_rows.is_some() {
                true => Some(model.merged()?),
                false => None,
            };
            gpu.generators(merged.as_ref().unwrap_or(model), _numbers).map(Some)
        }
    }
}

/// A model's form on its device, made when it is first asked for. A copy of the model has none: its
/// tensors may be exchanged, and the copy then makes its own.
#[derive(Default)]
pub(crate) struct OnDevice {
    /// Of its devices, those that were asked so far.
    elsewhere: Mutex<Vec<Box<dyn Generator>>>,
    here: Mutex<Option<Arc<StoredWeights>>>,
}

impl OnDevice {
    /// The first `count` generators of `model`, made first where they are not there; none if its device
    /// has none.
    fn made(&self, model: &Gemma3, count: usize) -> Result<MutexGuard<'_, Vec<Box<dyn Generator>>>> {
        let mut there = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if there.len() < count
            && let Some(more) = generators(model, there.len()..count)?
        {
            there.extend(more);
        }
        Ok(there)
    }

    /// Calls `f` with the generator of `model`, on the first of its devices; `None` if its device has none.
    pub(super) fn with<R>(
        &self,
        model: &Gemma3,
        f: impl FnOnce(&mut dyn Generator) -> Result<R>,
    ) -> Result<Option<R>> {
        match self.made(model, 1)?.first_mut() {
            Some(generator) => f(generator.as_mut()).map(Some),
            None => Ok(None),
        }
    }

    /// Calls `f` with each of `parts` and the generator of a device of its own, all at the same time; `None`
    /// if the model's device has none. There must not be more parts than devices.
    pub(super) fn with_several<P: Send, R: Send>(
        &self,
        model: &Gemma3,
        parts: Vec<P>,
        f: impl Fn(P, &mut dyn Generator) -> Result<R> + Sync,
    ) -> Result<Option<Vec<R>>> {
        let mut there = self.made(model, parts.len())?;
        if there.is_empty() {
            return Ok(None);
        }
        let fault = || Error::device(model.device(), "a thread has ended", "This is a fault of emoji_lab");
        std::thread::scope(|scope| {
            let threads: Vec<_> = parts
                .into_iter()
                .zip(there.iter_mut())
                .map(|(part, generator)| scope.spawn(|| f(part, generator.as_mut())))
                .collect();
            let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(fault())));
            joined.collect::<Vec<_>>().into_iter().collect::<Result<_>>().map(Some)
        })
    }

    /// The weights that `model` generates with on the CPU, made first if they are not there.
    pub(super) fn on_host(&self, model: &Gemma3) -> Result<Arc<StoredWeights>> {
        let here = || self.here.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = &*here() {
            return Ok(there.clone());
        }
        // Without the lock, as a LazyTensor's values: what is made in parallel takes up other work, which may ask here.
        let made = for_generation(model)?;
        Ok(here().get_or_insert(made).clone())
    }

    /// Weights to generate with on the CPU in place of the model's own.
    #[cfg(test)]
    pub(super) fn set_on_host(&self, stored: Arc<StoredWeights>) {
        *self.here.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored);
    }

    /// Gives the memory back.
    pub(super) fn release(&self) {
        self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
        let there = self.elsewhere.lock().unwrap_or_else(PoisonError::into_inner).len();
        write!(f, "OnDevice({there} devices)")
    }
}
