//! Gemma 3: its configuration, files, tokenizer, forward and backward pass, and generation.

mod config;
mod weights;

pub use config::{Gemma3Config, LayerType};
pub use weights::Weights;
