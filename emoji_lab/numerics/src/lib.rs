//! The arithmetic of `emoji_lab`: what a step of training or a token of an answer is computed with.
//!
//! A crate of its own for the compiler's sake: it is compiled in one part, so that every loop has what it calls
//! beside it, and an edit of a notebook's step does not compile it again. Use it by way of `emoji_lab`, whose
//! modules [`ops`], [`rng`], [`error`] and (with a GPU) `gpu` these are.

pub mod error;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod host;
pub mod memory;
pub mod ops;
pub mod plain;
pub mod quant;
pub mod rng;

pub use error::{Error, Result};
