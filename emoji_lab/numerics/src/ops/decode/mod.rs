//! One token at a time on a GPU: five launches a layer, where a matrix is read once and everything
//! between two matrices is done again in every block, which is cheaper than another launch.
//!
//! The CPU has no version of its own: `emoji_lab::model::Gemma3::decode` is what these are checked
//! against.

#[doc(hidden)]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
