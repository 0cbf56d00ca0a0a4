//! Number formats of frozen weights.

pub mod blocks;
pub mod nf4;
pub mod quantize;

pub use nf4::Nf4Tensor;
