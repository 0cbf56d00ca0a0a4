//! Evaluations in a model card.

use super::ModelCard;
use crate::evaluate::Evaluation;
use crate::task::Unit;

impl ModelCard {
    /// With the means of an evaluation, under each measure's label and `name`; those that count
    /// things are left out. Beside the last validation loss, which stands there anyway.
    #[must_use]
    pub fn with_evaluation(mut self, name: &str, evaluation: &Evaluation) -> Self {
        self.evaluation = self.figures();
        for (place, measure) in evaluation.measures.iter().enumerate() {
            if measure.unit != Unit::Count {
                self.evaluation.push((format!("{}, {name}", measure.label), evaluation.mean_at(place)));
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Example;
    use crate::evaluate::{EvaluationConfig, judge_answers};
    use crate::train::LogEntry;

    #[test]
    fn means_stand_beside_the_loss() {
        let rows = vec![Example { text: "a party".into(), answer: "🎉".into() }; 2];
        let config = EvaluationConfig::default();
        let evaluation = judge_answers("mine", &rows, &["🎉", "no"], &config).unwrap();
        let log_history = vec![LogEntry { eval_loss: Some(1.25), ..LogEntry::default() }];
        let card = ModelCard { log_history, ..ModelCard::default() };
        let text = card.with_evaluation("this model", &evaluation).to_markdown("me/mine");
        for row in
            ["| Validation loss | 1.2500 |", "| emoji F1, this model | 0.5000 |", "| exact, this model |"]
        {
            assert!(text.contains(row), "{row} in {text}");
        }
        assert!(!text.contains("distinct"), "{text}");
    }
}
