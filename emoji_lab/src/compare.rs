//! The base model and the tuned one, asked the same.

use crate::data::{Message, Role, SYSTEM_PROMPT};
use crate::display::{Comparison, ComparisonRow};
use crate::error::Result;
use crate::model::{GenerationConfig, Model, generate};

/// Asks both models to translate each text, side by side.
///
/// # Errors
/// As [`generate`].
pub fn compare<S: AsRef<str>>(
    base: &Model,
    tuned: &Model,
    texts: &[S],
    config: &GenerationConfig,
) -> Result<Comparison> {
    let mut rows = Vec::with_capacity(texts.len());
    for text in texts {
        let text = text.as_ref();
        let messages = prompt(text);
        rows.push(ComparisonRow {
            prompt: text.to_string(),
            base: generate(base, &messages, config)?,
            tuned: generate(tuned, &messages, config)?,
            expected: None,
        });
    }
    Ok(Comparison { rows })
}

/// The conversation that asks for `text` in emoji: what the model was trained to answer.
pub fn prompt(text: &str) -> Vec<Message> {
    let message = |role, content: &str| Message { role, content: content.to_string() };
    vec![message(Role::System, SYSTEM_PROMPT), message(Role::User, text)]
}
