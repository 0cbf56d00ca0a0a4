//! `training_state.json`: where a run stands, and which run it is.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::write_bytes_atomic;
use crate::train::identity::RunIdentity;

pub(super) const TRAINING_STATE_FILE: &str = "training_state.json";

/// Grows when what the files mean changes, so that an old checkpoint is refused, not misread.
const FORMAT: u32 = 2;

/// Where a run stands beyond its step count: everything small that it needs to go on bit for bit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::train) struct Counters {
    /// Forward passes done in training; dropout's randomness is a function of it.
    pub(in crate::train) passes: u64,
    /// Sum of step losses since the last log entry.
    pub(in crate::train) loss_since_log: f64,
    /// Step of the last log entry.
    pub(in crate::train) logged_step: usize,
    /// Sum of all step losses.
    pub(in crate::train) loss_total: f64,
    /// Tokens trained on.
    pub(in crate::train) tokens: usize,
    /// Last gradient norm.
    pub(in crate::train) grad_norm: f64,
    /// Last learning rate.
    pub(in crate::train) learning_rate: f64,
}

/// What the file says. It is small, so that checkpoints can be told apart without their tensors.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::train) struct TrainingState {
    /// Optimizer steps done.
    pub(in crate::train) global_step: usize,
    pub(in crate::train) counters: Counters,
    pub(in crate::train) identity: RunIdentity,
}

/// The file's layout.
#[derive(Serialize, Deserialize)]
struct Layout {
    format: u32,
    global_step: usize,
    position: CountersAndRun,
}

#[derive(Serialize, Deserialize)]
struct CountersAndRun {
    #[serde(flatten)]
    counters: Counters,
    identity: RunIdentity,
}

impl TrainingState {
    /// Writes the file into the checkpoint folder `dir`; finite floats keep their bits.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub(super) fn save(self, dir: &Path) -> Result<()> {
        let Self { global_step, counters, identity } = self;
        let layout = Layout { format: FORMAT, global_step, position: CountersAndRun { counters, identity } };
        let text = serde_json::to_string_pretty(&layout).map_err(|e| {
            Error::training(
                format!("where the run stands cannot be written: {e}"),
                "This is a fault of emoji_lab",
            )
        })?;
        write_bytes_atomic(dir.join(TRAINING_STATE_FILE), text.as_bytes())
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`Error::Training`] if the file is missing, damaged or of another version.
    pub(in crate::train) fn load(dir: &Path) -> Result<Self> {
        needed(dir, TRAINING_STATE_FILE)?;
        let path = dir.join(TRAINING_STATE_FILE);
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "reading the checkpoint", e))?;
        let damaged = |e: serde_json::Error| {
            let help =
                "The file is cut short, damaged, or of another version of emoji_lab: take another checkpoint";
            Error::training(format!("{} is not readable: {e}", path.display()), help)
        };
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_str(&text).map_err(damaged)?;
        if version.format != FORMAT {
            let problem = format!("{} has format {}, this is {FORMAT}", path.display(), version.format);
            return Err(Error::training(problem, "Resume with the version of emoji_lab that wrote it"));
        }
        let layout: Layout = serde_json::from_str(&text).map_err(damaged)?;
        let CountersAndRun { counters, identity } = layout.position;
        Ok(Self { global_step: layout.global_step, counters, identity })
    }

    /// Whether the checkpoint in `dir` is of the run `here`.
    pub(in crate::train) fn is_of(dir: &Path, here: &RunIdentity) -> bool {
        Self::load(dir).is_ok_and(|there| there.identity.is(here))
    }
}

/// Refuses a folder without `file`, which only this trainer writes.
pub(super) fn needed(dir: &Path, file: &str) -> Result<()> {
    if dir.join(file).is_file() {
        return Ok(());
    }
    let help = "Only checkpoints that this trainer wrote can be resumed; those of Python can be merged";
    Err(Error::training(format!("{} holds no {file}", dir.display()), help))
}
