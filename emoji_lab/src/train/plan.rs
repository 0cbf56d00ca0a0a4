//! How many steps a run has, and after which of them something is to be done.

use super::config::Strategy;
use super::schedule::warmup_steps;
use super::trainer::SftTrainer;
use crate::error::{Error, Result};

/// Sizes of a run, from the settings and the number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) batches_per_epoch: usize,
    /// Of a whole step: what each device takes, times the devices.
    pub(super) batches_per_step: usize,
    pub(super) steps_per_epoch: usize,
    pub(super) total_steps: usize,
    pub(super) warmup: usize,
}

impl Plan {
    /// Whether `step` (from 1) is the last of an epoch.
    pub(super) fn ends_epoch(&self, step: usize) -> bool {
        step.is_multiple_of(self.steps_per_epoch) || step == self.total_steps
    }

    /// Whether evaluating or saving is due after `step`: as the strategy says, and by steps also at the
    /// end, as in transformers (a run by epochs ends with an epoch anyway).
    pub(super) fn is_due(&self, strategy: Strategy, step: usize) -> bool {
        strategy.is_due(step, self.ends_epoch(step))
            || step == self.total_steps && matches!(strategy, Strategy::Steps(_))
    }
}

impl SftTrainer {
    pub(super) fn plan(&self) -> Result<Plan> {
        let args = &self.args;
        let batches_per_epoch = self.train_rows.len().div_ceil(args.per_device_train_batch_size);
        let batches_per_step = args.gradient_accumulation_steps * self.finetune.ranks();
        let steps_per_epoch = batches_per_epoch.div_ceil(batches_per_step);
        let total_steps = match args.max_steps {
            Some(steps) => steps,
            None => (args.num_train_epochs * steps_per_epoch as f64).ceil() as usize,
        };
        if args.eval_strategy != Strategy::No && self.eval_batches.is_empty() {
            return Err(Error::setting(
                "eval_strategy",
                format!("{:?}", args.eval_strategy),
                "there are no evaluation rows: give SftTrainer an eval_dataset, or set Strategy::No",
            ));
        }
        let warmup = warmup_steps(args.warmup_steps, args.warmup_ratio, total_steps)?;
        Ok(Plan { batches_per_epoch, batches_per_step, steps_per_epoch, total_steps, warmup })
    }

    /// Whether steps after `step` (counted from 1) must wait until it is done, for an evaluation or
    /// a checkpoint.
    pub(super) fn pauses_after(&self, plan: &Plan, step: usize) -> bool {
        plan.is_due(self.args.eval_strategy, step) || plan.is_due(self.args.save_strategy, step)
    }
}
