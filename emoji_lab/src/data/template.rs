//! A model's own chat template (Jinja), rendered as transformers' `apply_chat_template` does.

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {}
