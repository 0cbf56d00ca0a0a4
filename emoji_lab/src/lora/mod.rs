//! LoRA: configuration, adapter files, merging.

mod adapter;
mod adapter_checks;
mod adapter_config;
mod adapter_json;
mod config;
mod folder;
mod inject;
mod merge;
mod names;
mod selection;
mod token_indices;

pub use adapter::Adapter;
pub(crate) use adapter::CONFIG_FILE;
pub use adapter_config::AdapterConfig;
pub use config::LoraConfig;
pub use inject::quantize;
pub(crate) use inject::{add_adapters, quantize_linears, train_embeddings, train_token_rows};
pub use merge::{merge_adapters, merge_into};
pub use token_indices::TokenIndices;
