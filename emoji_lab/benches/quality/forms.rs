//! The forms in which a recipe's model answers.

use std::sync::Arc;

use emoji_lab::model::Model;
use emoji_lab::prelude::*;
use emoji_lab::task::{EmojiJudge, Judge, Measure};

use crate::scores::Scores;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Form {
    /// Merged into the exact weights, as Google's notebook does after training on NF4.
    MergedIntoExact,
    /// As it was trained.
    Trained,
    /// The same, held to what the task's constraint lets through.
    Constrained,
    /// The same, the one of so many samples that agrees best with them.
    OneOfSamples(usize),
    /// The same, the consensus of so many samples.
    Consensus(usize),
}

/// Judges as another does, and puts no answers together.
#[derive(Debug)]
struct OnlyDrawn(EmojiJudge);

impl Judge for OnlyDrawn {
    fn measures(&self) -> Vec<Measure> {
        self.0.measures()
    }

    fn judge(&self, answer: &str, expected: &str) -> Vec<f64> {
        self.0.judge(answer, expected)
    }
}

impl Form {
    /// Those of a recipe; the first is what the table compares with.
    pub fn all(recipe: &Recipe, samples: usize) -> Vec<Self> {
        if recipe.quant.load_in_4bit && recipe.lora.is_some() {
            return vec![Self::MergedIntoExact, Self::Trained];
        }
        let mut all = vec![Self::Trained, Self::Constrained];
        if samples > 1 {
            all.extend([Self::OneOfSamples(samples), Self::Consensus(samples)]);
        }
        all
    }

    pub fn scores(self, recipe: &Recipe) -> Scores {
        let name = &recipe.name;
        match self {
            Self::MergedIntoExact => Scores::new(&format!("{name}, merged into the exact weights")),
            Self::Trained if recipe.quant.load_in_4bit => Scores::new(&format!("{name}, as it was trained")),
            Self::Trained => Scores::new(name),
            Self::Constrained => Scores::new("   only emoji can be said"),
            Self::OneOfSamples(samples) => Scores::new(&format!("   best of {samples} samples")),
            Self::Consensus(samples) => Scores::new(&format!("   consensus of {samples} samples")),
        }
    }

    /// The answers of `model`, or of `merged` where that is the form.
    pub fn evaluate(self, models: &Models, rows: &ChatDataset) -> Result<Evaluation> {
        let free = EvaluationConfig::default();
        let constraint = Task::emoji().constraint;
        let held = GenerationConfig { constraint, ..free.generation.clone() };
        let config = match self {
            Self::MergedIntoExact | Self::Trained => free,
            Self::Constrained => EvaluationConfig { generation: held, ..free },
            Self::OneOfSamples(samples) => {
                let judge: Arc<dyn Judge> = Arc::new(OnlyDrawn(EmojiJudge));
                EvaluationConfig { generation: held, samples, judge: Some(judge), ..free }
            }
            Self::Consensus(samples) => EvaluationConfig { generation: held, samples, ..free },
        };
        let model = match (self, &models.merged) {
            (Self::MergedIntoExact, Some(merged)) => merged,
            _ => &models.trained,
        };
        evaluate(model, rows, &config)
    }
}

/// What a recipe made of the base.
pub struct Models {
    pub trained: Model,
    /// For one on NF4.
    pub merged: Option<Model>,
}
