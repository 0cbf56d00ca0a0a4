//! LoRA: configuration, adapter files, merging.

mod config;

pub use config::{ALL_LINEAR, LoraConfig};
