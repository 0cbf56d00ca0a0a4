//! A checkpoint on its way to its folder, part after part: each is written as soon as it is there, and on a GPU the
//! last evaluation goes on beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use candle_core::Tensor;

use super::weights::WeightsFormat;
use super::{CheckpointDir, Counters, OPTIMIZER_FILE, TrainingState};
use crate::display::say;
use crate::error::{Error, Result};
use crate::model::write_safetensors;
use crate::train::identity::RunIdentity;
use crate::train::trainer_state::{TRAINER_STATE_FILE, TrainerState};

/// Tensors by their names.
type Tensors = BTreeMap<String, Tensor>;

/// What of a [`Checkpoint`](super::Checkpoint) is not tensors, and known only when all that is due after its step is done.
#[derive(Debug, Clone)]
pub(in crate::train) struct Rest {
    /// Where the run stands beyond its step count, which `state` has.
    pub(in crate::train) counters: Counters,
    /// Which run it is.
    pub(in crate::train) identity: RunIdentity,
    /// What HF's Trainer keeps: steps, epochs, the log.
    pub(in crate::train) state: TrainerState,
}

impl Rest {
    fn save(&self, dir: &Path) -> Result<()> {
        let training = TrainingState {
            global_step: self.state.global_step,
            counters: self.counters.clone(),
            identity: self.identity.clone(),
        };
        training.save(dir)?;
        self.state.save(dir.join(TRAINER_STATE_FILE))
    }
}

/// Who gives the parts of a checkpoint. One who is gone before all are given has given it up.
#[derive(Debug)]
pub(super) struct Giver {
    pub(super) moments: Sender<Tensors>,
    pub(super) weights: Sender<Tensors>,
    pub(super) rest: Sender<Rest>,
}

/// The parts of a checkpoint, as they come.
pub(super) struct Parts {
    moments: Receiver<Tensors>,
    weights: Receiver<Tensors>,
    rest: Receiver<Rest>,
}

fn come<T>(part: &Receiver<T>) -> Result<T> {
    let given_up = || Error::training("a checkpoint was given up", "This is a fault of emoji_lab");
    part.recv().map_err(|_| given_up())
}

/// What is said of a thread that panicked, by what it does.
pub(in crate::train) fn died(what: &str) -> Error {
    Error::training(format!("the thread that {what} died"), "This is a fault of emoji_lab")
}

impl Parts {
    pub(super) fn new() -> (Giver, Self) {
        let ((give_moments, moments), (give_weights, weights), (give_rest, rest)) =
            (channel(), channel(), channel());
        let giver = Giver { moments: give_moments, weights: give_weights, rest: give_rest };
        (giver, Self { moments, weights, rest })
    }

    /// Writes the files of a checkpoint into the folder `dir`, each when its part has come.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be written; [`Error::Training`] if it was given up.
    pub(super) fn save(self, dir: &Path, format: &WeightsFormat) -> Result<Rest> {
        let Self { moments, weights, rest } = self;
        // Two large files, side by side: each waits for its own bytes to be on the disk.
        let (weights, moments) = thread::scope(|scope| {
            let moments =
                scope.spawn(move || write_safetensors(dir.join(OPTIMIZER_FILE), &come(&moments)?, None));
            let weights = come(&weights).and_then(|weights| format.save(dir, &weights));
            (weights, moments.join().unwrap_or_else(|_| Err(died("writes checkpoints"))))
        });
        weights.and(moments)?;
        let rest = come(&rest)?;
        rest.save(dir)?;
        Ok(rest)
    }
}

/// Where the checkpoint of `step` belongs, and how it is written.
pub(in crate::train) struct ToWrite {
    pub(in crate::train) step: usize,
    pub(in crate::train) format: WeightsFormat,
    pub(in crate::train) output_dir: PathBuf,
    pub(in crate::train) save_total_limit: Option<usize>,
}

impl ToWrite {
    /// Writes the checkpoint, and removes the ones that are too many then.
    ///
    /// One of another run that has the same number is set aside, not replaced.
    fn write(self, parts: Parts) -> Result<CheckpointDir> {
        let Self { step, format, output_dir, save_total_limit } = self;
        let place = CheckpointDir::at(&output_dir, step);
        let (mut rest, mut aside) = (None, None);
        let written = CheckpointDir::write(&output_dir, step, |part| {
            let rest: &Rest = rest.insert(parts.save(part, &format)?);
            let there = std::fs::symlink_metadata(&place.path).is_ok();
            if there && !TrainingState::is_of(&place.path, &rest.identity) {
                aside = Some(place.set_aside()?);
            }
            Ok(())
        });
        let written = match (written, aside) {
            (Ok(written), Some(aside)) => {
                say(format_args!(
                    "{} was not of this run, and is now {}",
                    place.path.display(),
                    aside.display()
                ));
                written
            }
            (Err(error), Some(aside)) => {
                let _ = std::fs::rename(&aside, &place.path);
                return Err(error);
            }
            (written, None) => written?,
        };
        if let Some(Rest { identity, state, .. }) = rest {
            let is_ours = |there: &CheckpointDir| TrainingState::is_of(&there.path, &identity);
            let best = state.best_model_checkpoint.map(PathBuf::from);
            CheckpointDir::rotate(&output_dir, save_total_limit, &written, best.as_deref(), is_ours)?;
        }
        Ok(written)
    }
}

/// A checkpoint being written on a thread of its own.
#[derive(Debug)]
pub(in crate::train) struct Writing {
    step: usize,
    /// Until all parts are given.
    giver: Option<Giver>,
    thread: JoinHandle<Result<CheckpointDir>>,
}

impl Writing {
    pub(in crate::train) fn begin(to_write: ToWrite) -> Self {
        let (giver, parts) = Parts::new();
        let step = to_write.step;
        Self { step, giver: Some(giver), thread: thread::spawn(move || to_write.write(parts)) }
    }

    /// Whether it is the checkpoint of `step`, and the rest of it is still to be given.
    pub(in crate::train) fn waits_for_rest(&self, step: usize) -> bool {
        self.step == step && self.giver.is_some()
    }

    /// Gives AdamW's moments. What became of the thread is told by [`finish`](Self::finish).
    pub(in crate::train) fn give_moments(&self, moments: Tensors) {
        if let Some(giver) = &self.giver {
            let _ = giver.moments.send(moments);
        }
    }

    /// Gives what is trained.
    pub(in crate::train) fn give_weights(&self, weights: Tensors) {
        if let Some(giver) = &self.giver {
            let _ = giver.weights.send(weights);
        }
    }

    /// Gives the rest.
    pub(in crate::train) fn give_rest(&mut self, rest: Rest) {
        if let Some(giver) = self.giver.take() {
            let _ = giver.rest.send(rest);
        }
    }

    /// Waits for it to be on the disk; one whose parts were not all given leaves nothing, and is `None`.
    pub(in crate::train) fn finish(self) -> Result<Option<CheckpointDir>> {
        let given_up = self.giver.is_some();
        drop(self.giver);
        let written = self.thread.join().unwrap_or_else(|_| Err(died("writes checkpoints")));
        if given_up { Ok(None) } else { written.map(Some) }
    }
}
