//! `trainer_state.json`, as HF's Trainer writes it.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::log::LogEntry;
use crate::error::{Error, Result};
use crate::files::write_bytes_atomic;
use crate::python_json::without_words;

/// The name of the file in a checkpoint folder.
pub const TRAINER_STATE_FILE: &str = "trainer_state.json";

/// Trainer's own control among what callbacks keep: made anew whenever the file is written.
pub(super) const TRAINER_CONTROL: &str = "TrainerControl";

/// transformers' `TrainerState`: how far a run is and what it logged. Field names are the file's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainerState {
    /// Step of the best evaluation, if the best one is looked for.
    pub best_global_step: Option<usize>,
    /// The metric at that step.
    pub best_metric: Option<f64>,
    /// The checkpoint folder of that step.
    pub best_model_checkpoint: Option<String>,
    /// Epochs done, with the fraction of the running one.
    pub epoch: f64,
    /// Steps between evaluations, where they go by steps.
    #[serde(deserialize_with = "whole_number")]
    pub eval_steps: usize,
    /// Optimizer steps done.
    pub global_step: usize,
    /// Whether this run is one of a search. Always false here.
    pub is_hyper_param_search: bool,
    /// Whether this process leads its machine. Always true here.
    pub is_local_process_zero: bool,
    /// Whether this process leads the run. Always true here.
    pub is_world_process_zero: bool,
    /// Every entry logged so far.
    pub log_history: Vec<LogEntry>,
    /// Steps between log entries, where they go by steps.
    #[serde(deserialize_with = "whole_number")]
    pub logging_steps: usize,
    /// Optimizer steps of the whole run.
    pub max_steps: usize,
    /// Tokens seen, if they are counted.
    pub num_input_tokens_seen: usize,
    /// Epochs of the whole run, rounded up.
    pub num_train_epochs: usize,
    /// Steps between checkpoints, where they go by steps.
    #[serde(deserialize_with = "whole_number")]
    pub save_steps: usize,
    /// What callbacks keep, by class name.
    pub stateful_callbacks: Map<String, Value>,
    /// Floating-point operations so far, as Trainer counts them: 6 for each parameter but the
    /// embedding's and each token, padding included.
    pub total_flos: f64,
    /// Rows per batch.
    pub train_batch_size: Option<usize>,
    /// Name of the trial of a search.
    pub trial_name: Option<String>,
    /// Settings of the trial of a search.
    pub trial_params: Option<Value>,
}

impl Default for TrainerState {
    fn default() -> Self {
        Self {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: 500,
            global_step: 0,
            is_hyper_param_search: false,
            is_local_process_zero: true,
            is_world_process_zero: true,
            log_history: Vec::new(),
            logging_steps: 500,
            max_steps: 0,
            num_input_tokens_seen: 0,
            num_train_epochs: 0,
            save_steps: 500,
            stateful_callbacks: Map::new(),
            total_flos: 0.0,
            train_batch_size: None,
            trial_name: None,
            trial_params: None,
        }
    }
}

impl TrainerState {
    /// The text of the file: keys in order, two spaces, as Python's `json.dumps(…, sort_keys=True)`.
    ///
    /// The state of Trainer's own control is in it as of a moment of saving, since Trainer looks
    /// for it when it resumes.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Only foreign Serialize implementations and non-text keys can fail here: there are none.
        let mut state = serde_json::to_value(self).unwrap_or_default();
        if let Some(callbacks) = state.get_mut("stateful_callbacks").and_then(Value::as_object_mut) {
            callbacks.entry(TRAINER_CONTROL).or_insert_with(|| {
                json!({
                    "args": {
                        "should_epoch_stop": false,
                        "should_evaluate": false,
                        "should_log": false,
                        "should_save": true,
                        "should_training_stop": self.max_steps > 0 && self.global_step >= self.max_steps,
                    },
                    "attributes": {},
                })
            });
        }
        state.sort_all_objects();
        format!("{state:#}\n")
    }

    /// Writes the file `path`, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_bytes_atomic(path, self.to_json().as_bytes())
    }

    /// Reads the file `path`: transformers' or [`save`](Self::save)'s. Fields it lacks, or has as
    /// `null` or Python's `NaN` (a run that diverged), have transformers' defaults.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::Training`] if it is not a trainer state.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(|e| Error::io(path, "reading the trainer's state", e))?;
        // An object first: serde would read a list into the fields in their order.
        let object = serde_json::from_str::<Map<String, Value>>(&without_words(&text));
        let state = object.and_then(|mut fields| {
            drop_nulls(&mut fields);
            let entries = fields.get_mut("log_history").and_then(Value::as_array_mut);
            entries.into_iter().flatten().filter_map(Value::as_object_mut).for_each(drop_nulls);
            serde_json::from_value(Value::Object(fields))
        });
        state.map_err(|e| {
            let help = "The file is cut short or damaged: take another checkpoint";
            Error::training(format!("{} is not readable as a trainer state: {e}", path.display()), help)
        })
    }
}

fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null());
}

/// Steps are whole, but Python writes 500.0 where a person set a float.
fn whole_number<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<usize, D::Error> {
    let number = f64::deserialize(from)?;
    if number < 0.0 || number.fract() != 0.0 {
        return Err(serde::de::Error::custom(format!("{number} is not a number of steps")));
    }
    Ok(number as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    // What transformers 5.23's Trainer left in checkpoint-6 of a run of two epochs, three steps each.
    const HF: &str = include_str!("hf_trainer_state.json");

    #[test]
    fn what_trainer_wrote_is_read_and_written_back_byte_for_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRAINER_STATE_FILE);
        fs::write(&path, HF).unwrap();
        let state = TrainerState::load(&path).unwrap();
        assert_eq!((state.global_step, state.best_global_step, state.epoch), (6, Some(6), 2.0));
        assert_eq!(state.log_history.len(), 4);
        assert_eq!(state.log_history[2].loss, Some(5.020312627156575));
        assert_eq!(state.log_history[3].eval_loss, Some(4.726438522338867));
        assert_eq!(state.to_json(), HF);
        // The control's state is made up where there is none, and equals Trainer's.
        let ours = TrainerState { stateful_callbacks: Map::new(), ..state };
        ours.save(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), HF);
    }

    #[test]
    fn older_files_lack_fields_and_floats_are_steps_too() {
        let state: TrainerState = serde_json::from_str(
            r#"{"global_step": 3, "epoch": 1, "save_steps": 20.0, "log_history": [], "stateful_callbacks": {}}"#,
        )
        .unwrap();
        assert_eq!(state, TrainerState { global_step: 3, epoch: 1.0, save_steps: 20, ..Default::default() });
        assert!(serde_json::from_str::<TrainerState>(r#"{"save_steps": 0.5}"#).is_err());
    }

    #[test]
    fn the_log_of_a_run_that_diverged_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRAINER_STATE_FILE);
        let text = r#"{"best_metric": NaN, "epoch": null, "global_step": 2, "log_history": [
            {"loss": NaN, "grad_norm": Infinity, "epoch": 0.5, "step": 1, "note": "NaN"},
            {"eval_loss": null, "step": 2}]}"#;
        fs::write(&path, text).unwrap();
        let state = TrainerState::load(&path).unwrap();
        assert_eq!((state.best_metric, state.epoch, state.global_step), (None, 0.0, 2));
        let [first, second] = &state.log_history[..] else { panic!("{state:?}") };
        assert_eq!((first.loss, first.grad_norm, first.epoch, first.step), (None, None, 0.5, 1));
        assert_eq!(first.other["note"], "NaN");
        assert_eq!((second.eval_loss, second.step), (None, 2));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TRAINER_STATE_FILE);
        assert!(matches!(TrainerState::load(&path), Err(Error::Io { .. })));
        for text in ["", &HF[..300], "[1]", "{\"log_history\": 3}"] {
            fs::write(&path, text).unwrap();
            let error = TrainerState::load(&path).unwrap_err().to_string();
            assert!(error.contains("trainer_state.json is not readable"), "{error}");
        }
    }
}
