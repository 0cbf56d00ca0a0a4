//! What a training run came to, for a cell to show.

use super::log::LogEntry;
use super::loss_table::loss_table;
use crate::display::{human_duration, notebook_view, thousands};

/// The result of [`super::SftTrainer::train`].
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOutput {
    /// Optimizer steps done.
    pub global_step: usize,
    /// Optimizer steps of the whole run.
    pub total_steps: usize,
    /// Mean loss over all steps.
    pub train_loss: f64,
    /// Seconds this call took.
    pub seconds: f64,
    /// Tokens trained on, padding not counted.
    pub tokens: usize,
    /// Everything logged.
    pub log_history: Vec<LogEntry>,
    /// The checkpoint whose parameters the trainer ended with, under `load_best_model_at_end`.
    pub best_checkpoint: Option<String>,
    /// Whether it ended before its last step, since nothing got better (`early_stopping_patience`).
    pub stopped_early: bool,
}

impl TrainOutput {
    fn summary(&self) -> String {
        let time = std::time::Duration::try_from_secs_f64(self.seconds).unwrap_or_default();
        let mut text = format!(
            "{} steps on {} tokens in {}",
            thousands(self.global_step as u64),
            thousands(self.tokens as u64),
            human_duration(time),
        );
        if self.global_step < self.total_steps {
            let why = if self.stopped_early { "ended early" } else { "interrupted" };
            text +=
                &format!("; {why}, {} steps to go", thousands((self.total_steps - self.global_step) as u64));
        }
        if let Some(best) = &self.best_checkpoint {
            text += &format!("; parameters of the best checkpoint, {best}");
        }
        text
    }

    /// The loss by epoch as plain text.
    pub fn to_text(&self) -> String {
        loss_table(&self.log_history).note(self.summary()).to_text()
    }

    /// The same as HTML.
    pub fn to_html(&self) -> String {
        loss_table(&self.log_history).note(self.summary()).to_html()
    }
}

notebook_view!(TrainOutput);
