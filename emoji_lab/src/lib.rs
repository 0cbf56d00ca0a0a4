//! Fine-tune Gemma 3 for emoji from a Rust notebook, one step a cell.
#![deny(missing_docs)]

pub mod data;
pub mod display;
pub mod error;
pub mod files;
pub mod hub;
pub mod lora;
pub mod model;
pub mod ops;
pub mod plot;
pub mod quant;
pub mod rng;
pub mod settings;
pub mod train;

pub use candle_core::{DType, Device, Tensor};
pub use error::{Error, Result};
