//! Settings of an evaluation.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::GenerationConfig;
use crate::task::{self, Judge};

/// How answers are asked for, and how they are judged.
#[derive(Debug, Clone)]
pub struct EvaluationConfig {
    /// How a model answers: greedy, at most 32 tokens.
    pub generation: GenerationConfig,
    /// Answers that are drawn for each row, of which the one that agrees best with the others counts
    /// ([`consensus`](super::consensus)); 1 for one answer as `generation` gives it.
    pub samples: usize,
    /// What answers are judged by, in place of the judge of the rows' task.
    pub judge: Option<Arc<dyn Judge>>,
    /// Draws of the bootstrap that intervals come from, 100 or more.
    pub resamples: usize,
    /// Seed of those draws.
    pub seed: u64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self { generation: GenerationConfig::greedy(32), samples: 1, judge: None, resamples: 2000, seed: 42 }
    }
}

impl EvaluationConfig {
    /// # Errors
    /// [`Error::Setting`] that names the setting which cannot work.
    pub fn validate(&self) -> Result<()> {
        self.generation.validate()?;
        if self.samples == 0 {
            return Err(Error::setting("samples", 0, "use 1 for one answer a row, 16 for a consensus"));
        }
        if !(100..=1_000_000).contains(&self.resamples) {
            let help = "use 100 to 1000000; with fewer draws the ends of an interval are chance";
            return Err(Error::setting("resamples", self.resamples, help));
        }
        self.judge.as_deref().map_or(Ok(()), task::check_judge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Measure;

    #[derive(Debug)]
    struct Blind;
    impl Judge for Blind {
        fn measures(&self) -> Vec<Measure> {
            vec![]
        }
        fn judge(&self, _: &str, _: &str) -> Vec<f64> {
            vec![]
        }
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let good = EvaluationConfig::default;
        good().validate().unwrap();
        for (name, wrong) in [
            ("max_new_tokens", EvaluationConfig { generation: GenerationConfig::greedy(0), ..good() }),
            ("samples", EvaluationConfig { samples: 0, ..good() }),
            ("resamples", EvaluationConfig { resamples: 99, ..good() }),
            ("resamples", EvaluationConfig { resamples: usize::MAX, ..good() }),
            ("judge", EvaluationConfig { judge: Some(Arc::new(Blind)), ..good() }),
        ] {
            let said = wrong.validate().unwrap_err().to_string();
            assert!(said.starts_with(&format!("setting {name} = ")), "{said}");
        }
    }
}
