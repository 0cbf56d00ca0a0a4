//! The log history, entry by entry as HF's Trainer keeps it.

use serde::{Deserialize, Serialize};

/// One entry of `log_history`: a training entry has `loss`, an evaluation entry `eval_loss`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Mean training loss since the last training entry, nats a token.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loss: Option<f64>,
    /// Global gradient norm before clipping, of the last step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grad_norm: Option<f64>,
    /// Learning rate of the last step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub learning_rate: Option<f64>,
    /// Mean loss over the evaluation rows.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_loss: Option<f64>,
    /// Seconds the evaluation took.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_runtime: Option<f64>,
    /// Tokens trained on so far, padding not counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub num_tokens: Option<f64>,
    /// Seconds the whole run took (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_runtime: Option<f64>,
    /// Mean loss over the whole run (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_loss: Option<f64>,
    /// Epochs done, with the fraction of the running one.
    pub epoch: f64,
    /// Optimizer steps done.
    pub step: usize,
}
