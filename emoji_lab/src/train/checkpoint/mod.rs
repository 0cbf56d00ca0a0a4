//! Checkpoints: a run at one step, on disk and back.

mod dir;
mod of_trainer;
mod training_state;
mod upkeep;
mod weights;
mod writing;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

pub use dir::CheckpointDir;
pub(super) use dir::last_part;
pub(super) use training_state::{Counters, TrainingState};
use training_state::{TRAINING_STATE_FILE, needed};
pub(super) use weights::SharedTokenizer;
use weights::WeightsFormat;
pub(super) use writing::{Rest, ToWrite, Writing, died};

use super::trainer_state::{TRAINER_CONTROL, TRAINER_STATE_FILE, TrainerState};
use crate::error::{Error, Result};
use crate::model::read_safetensors;

const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// A run at one step: everything that it needs to go on with the same numbers.
///
/// [`Writing`] and [`load`](Self::load) are mirror images, bit for bit, and so are what a trainer gives the one
/// and [`SftTrainer::restore`](super::SftTrainer::restore).
#[derive(Debug, Clone)]
pub(super) struct Checkpoint {
    /// What is trained, by the parameters' names; f32.
    pub(super) weights: BTreeMap<String, Tensor>,
    /// AdamW's moments by PyTorch's names, as `exp_avg.model.layers.0.…`; f32.
    pub(super) moments: BTreeMap<String, Tensor>,
    /// Where the run stands, and which it is.
    pub(super) rest: Rest,
}

impl Checkpoint {
    /// Reads the files of a checkpoint in the folder `dir`, tensors on the CPU.
    ///
    /// # Errors
    /// [`Error::Training`] or [`Error::Model`] that names the file which is missing, damaged or of another
    /// version.
    pub(super) fn load(dir: &Path, format: &WeightsFormat) -> Result<Self> {
        needed(dir, OPTIMIZER_FILE)?;
        let training = TrainingState::load(dir)?;
        let mut state = TrainerState::load(dir.join(TRAINER_STATE_FILE))?;
        // It is of the step that the file was written at: the next file has its own.
        state.stateful_callbacks.remove(TRAINER_CONTROL);
        if training.global_step != state.global_step {
            return Err(Error::training(
                format!(
                    "{} contradicts itself: {TRAINING_STATE_FILE} is of step {}, {TRAINER_STATE_FILE} of step {}",
                    dir.display(),
                    training.global_step,
                    state.global_step
                ),
                "Its files are of two checkpoints: take another one",
            ));
        }
        let moments = read_safetensors(&dir.join(OPTIMIZER_FILE))?;
        let weights = format.load(dir)?;
        let TrainingState { counters, identity, .. } = training;
        Ok(Self { weights, moments, rest: Rest { counters, identity, state } })
    }

    /// Takes the moment `name` out, which must have the shape `dims`.
    ///
    /// # Errors
    /// [`Error::Training`] if it is missing or of another shape: the run's settings have changed.
    fn take_moment(&mut self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let help = "Resume with the settings the run was started with, or start anew";
        let tensor = self.moments.remove(name).ok_or_else(|| {
            Error::training(format!("the checkpoint's optimizer state has no tensor {name}"), help)
        })?;
        if tensor.dims() != dims {
            let problem = format!(
                "the checkpoint's optimizer tensor {name} has shape {:?}, not {dims:?}",
                tensor.dims()
            );
            return Err(Error::training(problem, help));
        }
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests;
