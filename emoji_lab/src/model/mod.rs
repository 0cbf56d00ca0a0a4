//! Gemma 3: its configuration, files, tokenizer, forward and backward pass, and generation.

mod cache;
mod config;
mod gemma3;
mod layer;
mod linear;
mod packed;
mod weights;

pub use cache::KvCache;
pub use config::{Gemma3Config, LayerType};
pub(crate) use gemma3::ParameterMut;
pub use gemma3::{Gemma3, Tape};
pub(crate) use layer::LINEARS;
pub use linear::{DropoutKey, Linear, LoraAdapter, Param};
pub use packed::PackedTokens;
pub use weights::Weights;
