//! What TRL calls `SFTConfig`, with the notebook's settings as defaults.

use std::path::PathBuf;

use candle_core::DType;

use super::schedule::{Scheduler, warmup_steps};
use crate::display::settings_view;
use crate::error::{Error, Result};
use crate::ops::adamw::AdamW;

/// When something is done during training: logging, evaluating, saving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Never.
    No,
    /// Every so many optimizer steps.
    Steps(usize),
    /// At the end of every epoch.
    #[default]
    Epoch,
}

impl Strategy {
    /// Whether it is due after optimizer step `step`; `end_of_epoch` if the epoch ends with it.
    pub(super) fn is_due(self, step: usize, end_of_epoch: bool) -> bool {
        match self {
            Self::No => false,
            Self::Steps(every) => step.is_multiple_of(every),
            Self::Epoch => end_of_epoch,
        }
    }

    /// The number of steps, or transformers' default where it does not go by steps.
    pub(super) fn steps(self) -> usize {
        match self {
            Self::Steps(every) => every,
            Self::No | Self::Epoch => 500,
        }
    }
}

/// The shortest rows that teach every layer something.
const MIN_LENGTH: usize = 3;

/// Settings of supervised fine-tuning. Names are TRL's and transformers'.
#[derive(Debug, Clone, PartialEq)]
pub struct SftConfig {
    /// Where adapters, checkpoints and logs go.
    pub output_dir: PathBuf,
    /// How often the training rows are gone through; may be a fraction. Has no say beside `max_steps`.
    pub num_train_epochs: f64,
    /// Optimizer steps to do instead of `num_train_epochs`.
    pub max_steps: Option<usize>,
    /// Rows per batch in training.
    pub per_device_train_batch_size: usize,
    /// Rows per batch in evaluation.
    pub per_device_eval_batch_size: usize,
    /// Batches whose gradients are added up for one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Peak learning rate of the embedding and the head, or of the rows of them that are trained; `None`
    /// for `learning_rate`.
    pub embedding_learning_rate: Option<f64>,
    /// How the learning rate moves.
    pub lr_scheduler_type: Scheduler,
    /// Steps over which the learning rate rises from 0; wins over `warmup_ratio` if above 0.
    pub warmup_steps: usize,
    /// The same as a share of all steps.
    pub warmup_ratio: f64,
    /// Decoupled weight decay. As in transformers, biases and norms do not decay.
    pub weight_decay: f64,
    /// AdamW's decay rate of the first moment.
    pub adam_beta1: f64,
    /// AdamW's decay rate of the second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// What AdamW's two moments are kept in: f32, or bf16 (rounded stochastically), with which a GPU
    /// trains Gemma 3 270M in 2.1 GB instead of 2.8.
    pub optim_state_dtype: DType,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Rows are cut to this many tokens; 3 or more.
    pub max_length: usize,
    /// Whether only the assistant's answers count in the loss, all of a conversation's. Off in the
    /// notebook: every token counts.
    pub assistant_only_loss: bool,
    /// When to log the training loss.
    pub logging_strategy: Strategy,
    /// When to evaluate.
    pub eval_strategy: Strategy,
    /// When to write a checkpoint.
    pub save_strategy: Strategy,
    /// How many checkpoints are kept; `None` for all.
    pub save_total_limit: Option<usize>,
    /// Whether to answer the evaluation rows, too, and have the task's judge look at the answers: its
    /// measures are logged beside the loss, as `eval_f1`.
    pub predict_with_generate: bool,
    /// How many of the evaluation rows are answered at most.
    pub max_predict_samples: usize,
    /// Whether to end with the parameters of the best checkpoint.
    pub load_best_model_at_end: bool,
    /// What the best checkpoint is chosen by: `loss` (`None`), or a measure of the task's judge, as `f1`.
    pub metric_for_best_model: Option<String>,
    /// Whether more of it is better; `None` for yes, unless its name ends in `loss`.
    pub greater_is_better: Option<bool>,
    /// Evaluations without a better one after which training ends; `None` for never.
    pub early_stopping_patience: Option<usize>,
    /// Whether to write TensorBoard event files, under `output_dir/runs`.
    pub report_to_tensorboard: bool,
    /// Seed of the adapters' start, the row order and dropout.
    pub seed: u64,
    /// Progress lines a run prints; 0 for none.
    pub progress_lines: usize,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            output_dir: PathBuf::from("myemoji-gemma-adapters"),
            num_train_epochs: 3.0,
            max_steps: None,
            per_device_train_batch_size: 4,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 5e-5,
            embedding_learning_rate: None,
            lr_scheduler_type: Scheduler::Constant,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            weight_decay: 0.01,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            optim_state_dtype: DType::F32,
            max_grad_norm: 1.0,
            max_length: 256,
            assistant_only_loss: false,
            logging_strategy: Strategy::Epoch,
            eval_strategy: Strategy::Epoch,
            save_strategy: Strategy::Epoch,
            save_total_limit: None,
            predict_with_generate: false,
            max_predict_samples: 256,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            report_to_tensorboard: true,
            seed: 42,
            progress_lines: 15,
        }
    }
}

settings_view!(
    SftConfig,
    "Training",
    output_dir,
    num_train_epochs,
    max_steps,
    per_device_train_batch_size,
    per_device_eval_batch_size,
    gradient_accumulation_steps,
    learning_rate,
    embedding_learning_rate,
    lr_scheduler_type,
    warmup_steps,
    warmup_ratio,
    weight_decay,
    adam_beta1,
    adam_beta2,
    adam_epsilon,
    optim_state_dtype,
    max_grad_norm,
    max_length,
    assistant_only_loss,
    logging_strategy,
    eval_strategy,
    save_strategy,
    save_total_limit,
    predict_with_generate,
    max_predict_samples,
    load_best_model_at_end,
    metric_for_best_model,
    greater_is_better,
    early_stopping_patience,
    report_to_tensorboard,
    seed,
    progress_lines,
);

impl SftConfig {
    /// Settings that have no say beside others are not looked at, as in transformers:
    /// `num_train_epochs` beside `max_steps`, `warmup_ratio` beside `warmup_steps`.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the first setting which cannot work.
    pub fn validate(&self) -> Result<()> {
        let positive = "use a number above 0";
        let rate = "use a number from 0 up to, but not, 1";
        if self.max_steps.is_none() && !(self.num_train_epochs.is_finite() && self.num_train_epochs > 0.0) {
            return Err(Error::setting("num_train_epochs", self.num_train_epochs, positive));
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("embedding_learning_rate", self.embedding_learning_rate.unwrap_or(1.0)),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::setting(name, value, "use a small number above 0, as 5e-5"));
            }
        }
        for (name, value) in [
            ("per_device_train_batch_size", self.per_device_train_batch_size),
            ("per_device_eval_batch_size", self.per_device_eval_batch_size),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("max_steps", self.max_steps.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::setting(name, value, positive));
            }
        }
        if self.max_length < MIN_LENGTH {
            return Err(Error::setting(
                "max_length",
                self.max_length,
                "use 3 or more: a row of 2 tokens learns one, from a first token that attends to itself alone, \
                 and so teaches the attention nothing",
            ));
        }
        warmup_steps(self.warmup_steps, self.warmup_ratio, 0)?;
        for (name, value) in [("weight_decay", self.weight_decay), ("max_grad_norm", self.max_grad_norm)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::setting(name, value, "use 0 (off) or a number above it"));
            }
        }
        for (name, value) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::setting(name, value, rate));
            }
        }
        if !(self.adam_epsilon.is_finite() && self.adam_epsilon > 0.0) {
            return Err(Error::setting("adam_epsilon", self.adam_epsilon, positive));
        }
        if !matches!(self.optim_state_dtype, DType::F32 | DType::BF16) {
            let given = self.optim_state_dtype.as_str();
            return Err(Error::setting("optim_state_dtype", given, "use DType::F32 or DType::BF16"));
        }
        for (name, strategy) in [
            ("logging_strategy", self.logging_strategy),
            ("eval_strategy", self.eval_strategy),
            ("save_strategy", self.save_strategy),
        ] {
            if strategy == Strategy::Steps(0) {
                return Err(Error::setting(name, "Steps(0)", "use Steps of 1 or more, Epoch, or No"));
            }
        }
        for (name, value, ends) in [
            ("predict_with_generate", self.predict_with_generate.to_string(), self.predict_with_generate),
            (
                "metric_for_best_model",
                format!("{:?}", self.metric_for_best_model),
                self.metric_for_best_model.is_some(),
            ),
            (
                "early_stopping_patience",
                format!("{:?}", self.early_stopping_patience),
                self.early_stopping_patience.is_some(),
            ),
        ] {
            if ends && self.eval_strategy == Strategy::No {
                return Err(Error::setting(name, value, "it needs evaluations: give an eval_strategy"));
            }
        }
        for (name, value) in [
            ("early_stopping_patience", self.early_stopping_patience.unwrap_or(1)),
            ("max_predict_samples", self.max_predict_samples),
        ] {
            if value == 0 {
                return Err(Error::setting(name, value, positive));
            }
        }
        if self.best_metric() != "loss" && !self.predict_with_generate {
            return Err(Error::setting(
                "metric_for_best_model",
                self.best_metric(),
                "answers are measured with predict_with_generate: true; without it there is `loss` alone",
            ));
        }
        if self.load_best_model_at_end && self.save_strategy != self.eval_strategy {
            return Err(Error::setting(
                "load_best_model_at_end",
                true,
                "the best model can only be loaded if it was saved: give save_strategy and eval_strategy the same value",
            ));
        }
        if self.load_best_model_at_end && self.save_strategy == Strategy::No {
            return Err(Error::setting(
                "load_best_model_at_end",
                true,
                "save_strategy is No: nothing would be saved",
            ));
        }
        Ok(())
    }

    /// The name of what the best checkpoint is chosen by, without `eval_`.
    pub(super) fn best_metric(&self) -> &str {
        let name = self.metric_for_best_model.as_deref().unwrap_or("loss");
        name.strip_prefix("eval_").unwrap_or(name)
    }

    /// The embedding's learning rate as a multiple of the others'.
    pub(super) fn embedding_rate(&self) -> f64 {
        self.embedding_learning_rate.map_or(1.0, |rate| rate / self.learning_rate)
    }

    pub(super) fn optimizer(&self) -> AdamW {
        AdamW {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            state_dtype: self.optim_state_dtype,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_say_is_not_looked_at() {
        let plain = SftConfig::default();
        for fine in [
            SftConfig { max_steps: Some(3), num_train_epochs: 0.0, ..plain.clone() },
            SftConfig { max_steps: Some(3), num_train_epochs: f64::NAN, ..plain.clone() },
            SftConfig { warmup_steps: 2, warmup_ratio: 7.0, ..plain.clone() },
            SftConfig { max_grad_norm: 0.0, weight_decay: 0.0, ..plain.clone() },
            SftConfig { save_total_limit: Some(0), progress_lines: 0, ..plain.clone() },
            SftConfig { max_length: 3, ..plain.clone() },
        ] {
            fine.validate().unwrap();
        }
        for (name, wrong) in [
            ("num_train_epochs", SftConfig { num_train_epochs: 0.0, ..plain.clone() }),
            ("warmup_ratio", SftConfig { warmup_ratio: 7.0, ..plain.clone() }),
            ("max_steps", SftConfig { max_steps: Some(0), ..plain.clone() }),
            ("max_length = 2", SftConfig { max_length: 2, ..plain.clone() }),
            ("use 3 or more", SftConfig { max_length: 0, ..plain.clone() }),
            ("per_device_eval_batch_size", SftConfig { per_device_eval_batch_size: 0, ..plain.clone() }),
            ("logging_strategy", SftConfig { logging_strategy: Strategy::Steps(0), ..plain.clone() }),
            (
                "metric_for_best_model",
                SftConfig { metric_for_best_model: Some("f1".into()), ..plain.clone() },
            ),
            ("early_stopping_patience", SftConfig { early_stopping_patience: Some(0), ..plain.clone() }),
            (
                "predict_with_generate = true",
                SftConfig { predict_with_generate: true, eval_strategy: Strategy::No, ..plain.clone() },
            ),
        ] {
            let said = wrong.validate().unwrap_err().to_string();
            assert!(said.contains(name) && said.lines().count() == 1, "{said}");
        }
    }
}
