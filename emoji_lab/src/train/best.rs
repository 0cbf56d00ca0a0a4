//! The task's metric in a run: answers to the evaluation rows, the best evaluation, and the end of a
//! run that no longer gets anywhere.

use serde_json::{Value, json};

use super::log::LogEntry;
use super::trainer::SftTrainer;
use crate::display::say;
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, EvaluationConfig, evaluate};
use crate::model::Model;

/// Where transformers' `EarlyStoppingCallback` keeps its state.
const CALLBACK: &str = "EarlyStoppingCallback";
const COUNTER: &str = "early_stopping_patience_counter";

impl SftTrainer {
    /// Answers the evaluation rows (at most `max_predict_samples`) with the model as it stands, greedily,
    /// and has the task's judge look at the answers.
    ///
    /// # Errors
    /// [`Error::Setting`] if the trainer was given no evaluation rows; as
    /// [`evaluate`](crate::evaluate::evaluate).
    pub fn evaluate_answers(&self) -> Result<Evaluation> {
        if self.off {
            return Err(super::resume::off());
        }
        let Some(rows) = &self.eval_questions else {
            let help = "there are no evaluation rows: give SftTrainer an eval_dataset";
            return Err(Error::setting("predict_with_generate", true, help));
        };
        // Out of NF4 once, not once per token.
        let model = Model { gemma: self.finetune.peek_model()?.merged()?, ..self.base.clone() };
        evaluate(&model, rows, &EvaluationConfig { seed: self.args.seed, ..Default::default() })
    }

    /// Refuses a metric that the judge does not measure.
    pub(super) fn check_metric(&self) -> Result<()> {
        let (name, rows) = (self.args.best_metric(), &self.eval_questions);
        let Some(rows) = rows.as_ref().filter(|_| name != "loss") else { return Ok(()) };
        let there: Vec<&str> = rows.task.judge.measures().iter().map(|measure| measure.name).collect();
        match there.contains(&name) {
            true => Ok(()),
            false => {
                let help = format!("the task's judge measures {}; or take loss", there.join(", "));
                Err(Error::setting("metric_for_best_model", name, help))
            }
        }
    }

    /// Adds an evaluation's measures to a log entry, under HF's names.
    pub(super) fn put_measures(entry: &mut LogEntry, answers: &Evaluation) {
        for (place, measure) in answers.measures.iter().enumerate() {
            entry.other.insert(format!("eval_{}", measure.name), json!(answers.mean_at(place)));
        }
        if let Some(tokens) = answers.tokens_per_answer() {
            entry.other.insert("eval_gen_len".to_string(), json!(tokens));
        }
    }

    /// Whether anyone wants to know which evaluation is the best.
    fn looks_for_best(&self) -> bool {
        self.args.load_best_model_at_end
            || self.args.metric_for_best_model.is_some()
            || self.args.early_stopping_patience.is_some()
    }

    /// Notes whether an evaluation is the best so far; `saved` if a checkpoint is written after it.
    pub(super) fn note_best(&mut self, entry: &LogEntry, saved: bool) {
        if !self.looks_for_best() {
            return;
        }
        let name = self.args.best_metric().to_string();
        let value = match name.as_str() {
            "loss" => entry.eval_loss,
            _ => entry.metric(&name),
        };
        let value = value.unwrap_or(f64::NAN);
        let greater = self.args.greater_is_better.unwrap_or(!name.ends_with("loss"));
        // A value that is no number is better than none, and worse than any.
        let beats = |best: f64| !best.is_finite() || if greater { value > best } else { value < best };
        let state = &mut self.state;
        let is_better = value.is_finite() && state.best_metric.is_none_or(beats);
        if is_better {
            state.best_metric = Some(value);
            state.best_global_step = Some(state.global_step);
            if saved {
                let path = self.args.output_dir.join(format!("checkpoint-{}", state.global_step));
                state.best_model_checkpoint = Some(path.display().to_string());
            }
        }
        self.count_patience(is_better, &name);
    }

    /// Counts evaluations without a better one, as `EarlyStoppingCallback` does and where it does.
    fn count_patience(&mut self, is_better: bool, name: &str) {
        let Some(patience) = self.args.early_stopping_patience else { return };
        let counter = if is_better { 0 } else { self.patience_counter() + 1 };
        let state = json!({
            "args": {"early_stopping_patience": patience, "early_stopping_threshold": 0.0},
            "attributes": {COUNTER: counter},
        });
        self.state.stateful_callbacks.insert(CALLBACK.to_string(), state);
        if counter >= patience {
            say(format_args!(
                "no better {name} in {patience} evaluation{}: training ends here",
                if patience == 1 { "" } else { "s" }
            ));
        }
    }

    fn patience_counter(&self) -> usize {
        let callback = self.state.stateful_callbacks.get(CALLBACK);
        let counter = callback.and_then(|callback| callback["attributes"][COUNTER].as_u64());
        counter.unwrap_or(0) as usize
    }

    /// Whether the last evaluations brought nothing better, so that the run is over.
    pub(super) fn stopped_early(&self) -> bool {
        self.args.early_stopping_patience.is_some_and(|patience| self.patience_counter() >= patience)
    }
}

impl LogEntry {
    /// A measure of the answers that an evaluation logged, by its name without `eval_`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.other.get(&format!("eval_{name}")).and_then(Value::as_f64)
    }

    /// The names of the measures of answers in it, without `eval_`.
    pub(super) fn metrics(&self) -> impl Iterator<Item = &str> {
        let names = self.other.iter().filter(|(_, value)| value.is_number());
        names.filter_map(|(name, _)| name.strip_prefix("eval_")).filter(|name| *name != "gen_len")
    }
}
