//! A checkpoint on its way to its folder.

use std::path::PathBuf;
use std::thread::JoinHandle;

use super::weights::WeightsFormat;
use super::{Checkpoint, CheckpointDir, TrainingState};
use crate::display::say;
use crate::error::{Error, Result};

/// A checkpoint, and where it belongs.
pub(in crate::train) struct ToWrite {
    pub(in crate::train) checkpoint: Checkpoint,
    pub(in crate::train) format: WeightsFormat,
    pub(in crate::train) output_dir: PathBuf,
    pub(in crate::train) save_total_limit: Option<usize>,
}

impl ToWrite {
    /// Writes the checkpoint, and removes the ones that are too many then.
    ///
    /// One of another run that has the same number is set aside, not replaced.
    pub(in crate::train) fn write(self) -> Result<CheckpointDir> {
        let Self { checkpoint, format, output_dir, save_total_limit } = self;
        let is_ours = |there: &CheckpointDir| TrainingState::is_of(&there.path, &checkpoint.identity);
        let step = checkpoint.state.global_step;
        let place = CheckpointDir::at(&output_dir, step);
        let in_the_way = std::fs::symlink_metadata(&place.path).is_ok() && !is_ours(&place);
        let aside = if in_the_way { Some(place.set_aside()?) } else { None };
        let written = CheckpointDir::write(&output_dir, step, |part| checkpoint.save(part, &format));
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
        let best = checkpoint.state.best_model_checkpoint.as_ref().map(PathBuf::from);
        CheckpointDir::rotate(&output_dir, save_total_limit, &written, best.as_deref(), is_ours)?;
        Ok(written)
    }
}

/// A checkpoint being written on a thread of its own.
#[derive(Debug)]
pub(in crate::train) struct Writing(JoinHandle<Result<CheckpointDir>>);

impl Writing {
    pub(in crate::train) fn begin(checkpoint: ToWrite) -> Self {
        Self(std::thread::spawn(move || checkpoint.write()))
    }

    pub(in crate::train) fn finish(self) -> Result<CheckpointDir> {
        self.0.join().unwrap_or_else(|_| {
            Err(Error::training("the thread that writes checkpoints died", "This is a fault of emoji_lab"))
        })
    }
}
