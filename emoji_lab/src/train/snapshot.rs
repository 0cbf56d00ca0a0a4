//! A checkpoint as it was at one step, to be written while training goes on.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::checkpoint::CheckpointDir;
use super::resume::is_of;
use super::trainer::{Position, SftTrainer};
use super::trainer_state::{TRAINER_STATE_FILE, TrainerState};
use super::training_state::TrainingState;
use crate::display::say;
use crate::error::{Error, Result};
use crate::files::write_into_dir;
use crate::lora::{Adapter, CONFIG_FILE};
use crate::model::{Tokenizer, Weights, save_pretrained_folder};

/// What is trained, as it stood.
enum Trained {
    Adapter(Adapter),
    Model { config: Box<crate::model::Gemma3Config>, weights: Weights, generation_config: serde_json::Value },
}

/// The folder that `save_model` writes.
pub(super) struct ModelSnapshot {
    trained: Trained,
    tokenizer: Tokenizer,
}

impl ModelSnapshot {
    pub(super) fn take(trainer: &SftTrainer) -> Result<Self> {
        let trained = match trainer.adapter()? {
            Some(adapter) => Trained::Adapter(adapter),
            None => Trained::Model {
                config: Box::new(trainer.finetune.config().clone()),
                weights: trainer.finetune.peek_model()?.named_weights()?,
                generation_config: trainer.base.generation_config.clone(),
            },
        };
        Ok(Self { trained, tokenizer: trainer.base.tokenizer.clone() })
    }

    pub(super) fn save(&self, dir: &Path) -> Result<()> {
        match &self.trained {
            Trained::Adapter(adapter) => write_into_dir(dir, CONFIG_FILE, |stage| {
                adapter.write_files(stage)?;
                self.tokenizer.write_files(stage)
            }),
            Trained::Model { config, weights, generation_config } => save_pretrained_folder(
                dir,
                config,
                &weights.tensors,
                &self.tokenizer,
                generation_config,
                candle_core::DType::F32,
            ),
        }
    }
}

/// Everything of a checkpoint.
pub(super) struct Snapshot {
    pub(super) output_dir: PathBuf,
    pub(super) model: ModelSnapshot,
    pub(super) training: TrainingState<Position>,
    pub(super) state: TrainerState,
    pub(super) save_total_limit: Option<usize>,
}

impl Snapshot {
    /// Writes the checkpoint, and removes the ones that are too many then.
    ///
    /// One of another run that has the same number is set aside, not replaced.
    pub(super) fn write(self) -> Result<CheckpointDir> {
        let here = self.training.position.identity.clone();
        let is_ours = |checkpoint: &CheckpointDir| is_of(&checkpoint.path, &here);
        let step = self.state.global_step;
        let place = CheckpointDir::at(&self.output_dir, step);
        let in_the_way = std::fs::symlink_metadata(&place.path).is_ok() && !is_ours(&place);
        let aside = if in_the_way { Some(place.set_aside()?) } else { None };
        let written = CheckpointDir::write(&self.output_dir, step, |part| {
            // Two large files, side by side: each waits for its own bytes to be on the disk.
            let (model, training) = rayon::join(|| self.model.save(part), || self.training.save(part));
            model.and(training)?;
            self.state.save(&part.join(TRAINER_STATE_FILE))
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
        let best = self.state.best_model_checkpoint.as_ref().map(PathBuf::from);
        CheckpointDir::rotate(&self.output_dir, self.save_total_limit, &written, best.as_deref(), is_ours)?;
        Ok(written)
    }
}

/// A checkpoint being written on a thread of its own.
#[derive(Debug)]
pub(super) struct Writing(JoinHandle<Result<CheckpointDir>>);

impl Writing {
    pub(super) fn begin(snapshot: Snapshot) -> Self {
        Self(std::thread::spawn(move || snapshot.write()))
    }

    pub(super) fn finish(self) -> Result<CheckpointDir> {
        self.0.join().unwrap_or_else(|_| {
            Err(Error::training("the thread that writes checkpoints died", "This is a fault of emoji_lab"))
        })
    }
}
