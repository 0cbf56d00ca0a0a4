//! LoRA: configuration, adapter files, merging.

mod adapter;
mod adapter_config;
mod config;
mod folder;
mod inject;
mod merge;
mod names;
mod selection;

pub(crate) use adapter::CONFIG_FILE;
pub use adapter::{Adapter, EMBED_TOKENS, LM_HEAD, lora_a, lora_b, module_path};
pub use adapter_config::AdapterConfig;
pub use config::{ALL_LINEAR, LoraConfig};
pub(crate) use inject::{add_adapters, quantize_linears, train_embeddings};
pub use merge::{merge_adapters, merge_into};
