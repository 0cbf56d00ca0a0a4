//! Answers that are one of some labels.

use std::fmt;

use super::filter::{AnswerFilter, DropReason};
use super::judge::{Judge, Measure, Unit};

/// Keeps rows whose answer is one of these labels, and judges answers by whether they are the row's.
///
/// Blanks around an answer and capitals do not matter. The measures:
///
/// | name | unit | |
/// |---|---|---|
/// | `accuracy` | score | the answer is the row's label |
/// | `a_label` | share | the answer is one of the labels at all |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneOf(Vec<String>);

impl OneOf {
    /// These labels.
    pub fn new<S: Into<String>>(labels: impl IntoIterator<Item = S>) -> Self {
        Self(labels.into_iter().map(Into::into).collect())
    }

    /// The labels.
    pub fn labels(&self) -> &[String] {
        &self.0
    }

    fn has(&self, answer: &str) -> bool {
        self.0.iter().any(|label| same(label, answer))
    }
}

fn same(a: &str, b: &str) -> bool {
    a.trim().to_lowercase() == b.trim().to_lowercase()
}

impl fmt::Display for OneOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl AnswerFilter for OneOf {
    fn reason_to_drop(&self, answer: &str) -> Option<DropReason> {
        (!self.has(answer)).then_some(DropReason::Other("an answer that is none of the labels"))
    }

    fn name(&self) -> String {
        format!("one of {self}")
    }

    fn way_out(&self) -> String {
        format!("Answers must be one of {self}")
    }
}

impl Judge for OneOf {
    fn measures(&self) -> Vec<Measure> {
        if self.0.is_empty() {
            return vec![];
        }
        vec![
            Measure { name: "accuracy", label: "accuracy", unit: Unit::Score },
            Measure { name: "a_label", label: "one of the labels", unit: Unit::Share },
        ]
    }

    fn judge(&self, answer: &str, expected: &str) -> Vec<f64> {
        vec![f64::from(same(answer, expected)), f64::from(self.has(answer))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_told_from_other_answers() {
        let labels = OneOf::new(["joy", "fear"]);
        assert_eq!(labels.reason_to_drop(" Joy"), None);
        assert!(labels.reason_to_drop("joyful").is_some());
        for (answer, values) in
            [("joy", [1.0, 1.0]), ("FEAR ", [0.0, 1.0]), ("j", [0.0, 0.0]), ("", [0.0, 0.0])]
        {
            assert_eq!(labels.judge(answer, "joy"), values, "{answer}");
        }
        assert_eq!(labels.to_string(), "joy, fear");
    }
}
