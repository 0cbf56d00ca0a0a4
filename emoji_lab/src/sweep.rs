//! Several recipes tried on the same rows, and the best of them.
//!
//! ```
//! use emoji_lab::prelude::*;
//! # let rows = format_chat(&load_dataset("embedded", Task::emoji())?).take(40);
//! # let base = load_model("embedded", &Device::Cpu)?;
//! # let folder = std::env::temp_dir().join(format!("emoji_lab-sweep-{}", std::process::id()));
//! let args = SftConfig { max_steps: Some(4), output_dir: folder.clone(), ..SftConfig::default() };
//! let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
//! let recipes = [
//!     Recipe::new("Google's", &quant, &lora, &args),
//!     Recipe::new("larger steps", &quant, &lora, &SftConfig { learning_rate: 2e-3, ..args.clone() }),
//! ];
//! let outcome = sweep(&base, &rows, &recipes)?;
//! assert_eq!(outcome.results.len(), 2);
//! say!("{outcome}\nthe best: {}", outcome.best().name);
//! # std::fs::remove_dir_all(folder).ok();
//! # Ok::<(), Error>(())
//! ```

use std::time::Instant;

use crate::data::{ChatDataset, train_test_split};
use crate::display::{Align, Table, human_bytes, human_duration, notebook_view, say};
use crate::error::{Error, Result};
use crate::evaluate::{Evaluation, EvaluationConfig, evaluate, look_up};
use crate::lora::LoraConfig;
use crate::model::Model;
use crate::quant::QuantConfig;
use crate::train::{SftConfig, SftTrainer, Strategy};

/// The share of the rows that recipes are compared on.
const DEV: f64 = 0.1;

/// A way to train, with a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What a table calls it.
    pub name: String,
    /// What the frozen base is stored in.
    pub quant: QuantConfig,
    /// The adapters; `None` trains every parameter.
    pub lora: Option<LoraConfig>,
    /// The run.
    pub args: SftConfig,
}

impl Recipe {
    /// A recipe with adapters.
    pub fn new(name: impl Into<String>, quant: &QuantConfig, lora: &LoraConfig, args: &SftConfig) -> Self {
        Self { name: name.into(), quant: quant.clone(), lora: Some(lora.clone()), args: args.clone() }
    }
}

/// What a recipe came to.
#[derive(Debug, Clone, PartialEq)]
pub struct SweepResult {
    /// The recipe.
    pub recipe: Recipe,
    /// The answers to the rows that were set aside, judged.
    pub evaluation: Evaluation,
    /// The loss of those rows, nats per token.
    pub eval_loss: f64,
    /// Seconds of training.
    pub seconds: f64,
    /// Bytes of weights, gradients and moments while training; activations come on top.
    pub training_bytes: u64,
    /// Bytes of the trained parameters in f32: the adapter's file.
    pub adapter_bytes: u64,
}

/// What recipes came to, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Sweep {
    /// One for each recipe.
    pub results: Vec<SweepResult>,
    /// The same rows answered from the training rows alone.
    pub look_up: Evaluation,
    best: usize,
}

/// Trains a copy of `base` by each recipe and measures its answers by the task's judge.
///
/// A tenth of `rows` is set aside to compare on, shuffled by the first recipe's `seed`: give the
/// training part, so that the held-out rows stay for the last word. Nothing is saved; each run has a
/// folder `sweep-N` in its `output_dir` for its log.
///
/// # Errors
/// [`Error::Setting`] without recipes, or with too few rows; as [`SftTrainer::new`] and
/// [`SftTrainer::train`], with the recipe's name said before.
pub fn sweep(base: &Model, rows: &ChatDataset, recipes: &[Recipe]) -> Result<Sweep> {
    let Some(first) = recipes.first() else {
        return Err(Error::setting("recipes", "none", "give at least one Recipe"));
    };
    let splits = train_test_split(rows, DEV, first.args.seed)?;
    let config = EvaluationConfig::default();
    let mut results: Vec<SweepResult> = Vec::with_capacity(recipes.len());
    for (number, recipe) in recipes.iter().enumerate() {
        say(format_args!("{} of {}: {}", number + 1, recipes.len(), recipe.name));
        let args = SftConfig {
            output_dir: recipe.args.output_dir.join(format!("sweep-{}", number + 1)),
            eval_strategy: Strategy::No,
            save_strategy: Strategy::No,
            load_best_model_at_end: false,
            predict_with_generate: false,
            metric_for_best_model: None,
            early_stopping_patience: None,
            report_to_tensorboard: false,
            progress_lines: 0,
            ..recipe.args.clone()
        };
        let (quant, lora) = (&recipe.quant, recipe.lora.as_ref());
        let mut trainer = SftTrainer::new(base, &splits.train, Some(&splits.test), quant, lora, &args)?;
        let report = trainer.parameter_report();
        let started = Instant::now();
        trainer.train()?;
        let seconds = started.elapsed().as_secs_f64();
        let tuned = Model { gemma: trainer.model()?.merged()?, ..base.clone() };
        let evaluation = evaluate(&tuned, &splits.test, &config)?;
        results.push(SweepResult {
            recipe: recipe.clone(),
            eval_loss: trainer.evaluate()?,
            seconds,
            training_bytes: report.total().total_bytes(),
            adapter_bytes: 4 * trainer.finetune().trainable() as u64,
            evaluation,
        });
    }
    let look_up = look_up(&splits.train, &splits.test, &config)?;
    let score = |i: &usize| results[*i].evaluation.score().mean;
    // The first of equals.
    let best = (0..results.len()).rev().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or(0);
    Ok(Sweep { results, look_up, best })
}

impl Sweep {
    /// The recipe with the best answers.
    pub fn best(&self) -> &Recipe {
        &self.results[self.best].recipe
    }

    /// A recipe a line: the score of its answers with the interval, the loss, and what it costs.
    pub fn table(&self) -> Table {
        let rows = self.look_up.rows.len();
        let mut table = Table::new(format!("Recipes, by their answers to {rows} rows set aside"))
            .column("Recipe", Align::Left)
            .column(format!("{} [95 %]", self.look_up.label()), Align::Right)
            .column("Loss", Align::Right)
            .column("Training", Align::Right)
            .column("Memory", Align::Right)
            .column("Adapter", Align::Right)
            .row(["look-up, no model".to_string(), self.look_up.score().to_string()]);
        for result in &self.results {
            let time = std::time::Duration::try_from_secs_f64(result.seconds).unwrap_or_default();
            table = table.row([
                result.recipe.name.clone(),
                result.evaluation.score().to_string(),
                format!("{:.4}", result.eval_loss),
                human_duration(time),
                human_bytes(result.training_bytes),
                human_bytes(result.adapter_bytes),
            ]);
        }
        table.highlight(1 + self.best, "best").note(
            "Loss: nats per token of the same rows, over the tokens that the recipe learns from: not to be \
             compared between a recipe that learns from all and one that learns from the answer.",
        )
    }

    /// The table as text.
    pub fn to_text(&self) -> String {
        self.table().to_text()
    }

    /// The table as HTML.
    pub fn to_html(&self) -> String {
        self.table().to_html()
    }
}

notebook_view!(Sweep);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{format_chat, load_dataset};
    use crate::device::Device;
    use crate::model::load_model;
    use crate::task::Task;

    #[test]
    fn recipes_are_compared_on_rows_that_none_learnt_from() {
        let folder = tempfile::tempdir().unwrap();
        let rows = format_chat(&load_dataset("embedded", Task::emoji()).unwrap()).take(60);
        let base = load_model("embedded", &Device::Cpu).unwrap();
        let args = SftConfig {
            output_dir: folder.path().join("runs"),
            num_train_epochs: 1.0,
            learning_rate: 1e-5,
            ..SftConfig::default()
        };
        let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
        let alone = LoraConfig { modules_to_save: vec![], ..lora.clone() };
        let recipes = [
            Recipe::new("hardly moves", &quant, &lora, &args),
            Recipe::new("adapters alone", &quant, &alone, &SftConfig { learning_rate: 3e-3, ..args.clone() }),
        ];
        let outcome = sweep(&base, &rows, &recipes).unwrap();
        assert_eq!(outcome.best().name, "adapters alone");
        let [first, second] = &outcome.results[..] else { panic!("{outcome}") };
        assert_eq!((first.evaluation.rows.len(), outcome.look_up.rows.len()), (6, 6));
        assert!(second.eval_loss < first.eval_loss && second.adapter_bytes < first.adapter_bytes);
        assert!(second.training_bytes < first.training_bytes);
        let text = outcome.to_text();
        assert!(text.contains("adapters alone") && text.contains("← best"), "{text}");
        // Seeded: the same again.
        let again = sweep(&base, &rows, &recipes).unwrap();
        assert_eq!(again.results[1].evaluation.rows, second.evaluation.rows);
        assert!(sweep(&base, &rows, &[]).unwrap_err().to_string().contains("recipes = none"));
    }
}
