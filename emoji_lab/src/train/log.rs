//! The log history, entry by entry as HF's Trainer keeps it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One entry of `log_history`: a training entry has `loss`, an evaluation entry `eval_loss`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Mean training loss since the last training entry, nats per token.
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
    /// Rows evaluated a second.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_samples_per_second: Option<f64>,
    /// Batches evaluated a second.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_steps_per_second: Option<f64>,
    /// Tokens trained on so far, padding not counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub num_tokens: Option<f64>,
    /// Tokens trained on before this evaluation, padding not counted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub eval_num_tokens: Option<f64>,
    /// Seconds the whole run took (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_runtime: Option<f64>,
    /// Rows trained on a second (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_samples_per_second: Option<f64>,
    /// Optimizer steps per second (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_steps_per_second: Option<f64>,
    /// Floating-point operations of the whole run (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub total_flos: Option<f64>,
    /// Mean loss over the whole run (the last entry only).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub train_loss: Option<f64>,
    /// Epochs done, with the fraction of the running one.
    #[serde(default)]
    pub epoch: f64,
    /// Optimizer steps done.
    #[serde(default)]
    pub step: usize,
    /// What else a Python trainer logged, as TRL's `entropy` and `mean_token_accuracy`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl LogEntry {
    /// Its numbers under their log names, `step` left out: what TensorBoard is told.
    #[must_use]
    pub fn scalars(&self) -> Vec<(String, f64)> {
        // Field by field through serde, so that a field added above cannot be forgotten here.
        let Ok(Value::Object(fields)) = serde_json::to_value(self) else { return Vec::new() };
        fields
            .into_iter()
            .filter(|(name, _)| name != "step")
            .filter_map(|(name, value)| Some((name, value.as_f64()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_that_trl_wrote_goes_through_whole() {
        let text = r#"{"loss":6.483428001403809,"grad_norm":3.432929754257202,"learning_rate":0.002,"num_tokens":84.0,"epoch":0.125,"step":1,"entropy":6.02018404006958,"mean_token_accuracy":0.0}"#;
        let entry: LogEntry = serde_json::from_str(text).unwrap();
        assert_eq!(entry.loss, Some(6.483428001403809));
        assert_eq!(entry.other["entropy"], 6.02018404006958);
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
        let names: Vec<String> = entry.scalars().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            ["loss", "grad_norm", "learning_rate", "num_tokens", "epoch", "entropy", "mean_token_accuracy"]
        );
    }

    #[test]
    fn every_float_survives_json() {
        // Pseudo-random bit patterns of plausible losses: a parser that rounds twice loses some.
        let mut bits = 0x9E37_79B9_7F4A_7C15u64;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let loss = (bits >> 11) as f64 / (1u64 << 50) as f64;
            let entry = LogEntry { loss: Some(loss), epoch: loss / 3.0, ..Default::default() };
            let back: LogEntry = serde_json::from_str(&serde_json::to_string(&entry).unwrap()).unwrap();
            assert_eq!(back.loss.unwrap().to_bits(), loss.to_bits());
            assert_eq!(back.epoch.to_bits(), entry.epoch.to_bits());
        }
    }
}
