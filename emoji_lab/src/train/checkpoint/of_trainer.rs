//! A trainer as a checkpoint, and back.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::weights::WeightsFormat;
use super::{Checkpoint, Rest};
use crate::error::Result;
use crate::lora::Adapter;
use crate::train::layout::{Buffer, Slot};
use crate::train::resume::off;
use crate::train::run::Due;
use crate::train::trainer::SftTrainer;
use crate::train::trainer_state::TrainerState;

/// AdamW's moments, by PyTorch's names.
const MOMENTS: [(&str, Buffer); 2] = [("exp_avg", Buffer::ExpAvg), ("exp_avg_sq", Buffer::ExpAvgSq)];

fn moment_name(moment: &str, slot: &Slot) -> String {
    format!("{moment}.{}", slot.name)
}

impl SftTrainer {
    /// AdamW's moments; good until the next step only: on a CPU they are views into the memory that is being trained.
    pub(in crate::train) fn moments(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut moments = BTreeMap::new();
        for (moment, buffer) in MOMENTS {
            let names = self.finetune.slots().iter().map(|slot| moment_name(moment, slot));
            moments.extend(names.zip(self.finetune.peek_all(buffer)?));
        }
        Ok(moments)
    }

    /// If steps are left, and so a checkpoint will come: room may be made for its copies while there is time.
    pub(in crate::train) fn expect_checkpoint(&self) {
        if self.state.global_step < self.state.max_steps {
            self.finetune.will_peek_all(&[Buffer::ExpAvg, Buffer::ExpAvgSq, Buffer::Values]);
        }
    }

    /// Where the run stands, and which it is.
    pub(in crate::train) fn rest(&mut self) -> Result<Rest> {
        let identity = self.identity()?.clone();
        Ok(Rest { counters: self.counters.clone(), identity, state: self.state.clone() })
    }

    /// Goes on from `checkpoint`, which is of this run.
    pub(in crate::train) fn restore(&mut self, mut checkpoint: Checkpoint) -> Result<()> {
        // From here to the end the parameters belong to no step.
        self.off = true;
        self.put_weights(&checkpoint.weights)?;
        for slot in self.finetune.slots().to_vec() {
            for (moment, buffer) in MOMENTS {
                let tensor = checkpoint.take_moment(&moment_name(moment, &slot), &slot.dims)?;
                self.finetune.write(buffer, &slot, &tensor)?;
            }
        }
        let Rest { counters, state, .. } = checkpoint.rest;
        self.finetune.set_progress(state.global_step, counters.passes);
        self.counters = counters;
        // How long the run is, is this trainer's to say.
        let (max_steps, num_train_epochs) = (self.state.max_steps, self.state.num_train_epochs);
        self.state = TrainerState { max_steps, num_train_epochs, ..state };
        self.events = None;
        self.due = Due::default();
        self.off = false;
        Ok(())
    }

    /// How the folders of this run hold what it trains.
    pub(in crate::train) fn weights_format(&self) -> WeightsFormat {
        WeightsFormat {
            config: self.finetune.config().clone(),
            lora: self.lora.clone(),
            base: self.base.origin.clone(),
            tokenizer: self.tokenizer.clone(),
            generation_config: self.base.generation_config.clone(),
        }
    }

    /// What is trained; good until the next step only.
    pub(in crate::train) fn weights(&self) -> Result<BTreeMap<String, Tensor>> {
        if self.off {
            return Err(off());
        }
        let names = self.finetune.slots().iter().map(|slot| slot.name.clone());
        Ok(names.zip(self.finetune.peek_all(Buffer::Values)?).collect())
    }

    pub(in crate::train) fn put_weights(&mut self, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        self.finetune.load(weights.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }

    /// The trained adapter as it stands; `None` without LoRA.
    ///
    /// # Errors
    /// [`Error::Training`](crate::Error::Training) if an error has left the parameters between two steps.
    pub fn adapter(&self) -> Result<Option<Adapter>> {
        if self.off {
            return Err(off());
        }
        let Some(lora) = &self.lora else { return Ok(None) };
        let slots = self.finetune.slots().iter();
        let weights =
            slots.map(|slot| Ok((slot.name.clone(), self.finetune.value(slot)?))).collect::<Result<_>>()?;
        Ok(Some(self.weights_format().adapter(lora, weights)?))
    }

    /// Writes the trained adapter (or, without LoRA, the model) and the tokenizer into `dir`.
    ///
    /// What else is in `dir` stays; it may be `output_dir`.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the folder cannot be written,
    /// [`Error::Training`](crate::Error::Training) if an error has left the parameters between two steps.
    pub fn save_model(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.weights_format().save(dir.as_ref(), &self.weights()?)
    }
}
