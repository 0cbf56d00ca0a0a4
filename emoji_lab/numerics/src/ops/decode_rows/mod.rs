//! Decoding several sequences (rows) side by side, on a GPU: what it takes beside the ops of training,
//! `decode`'s attention and `sample`.
//!
//! - A prompt's keys and values go from a packed pass `[tokens, kv_heads · dim]` into the rows' caches
//!   `[rows, capacity, kv_heads, dim]`: token t of a row to place `t mod capacity`, of which the last
//!   `capacity` tokens stay. Several rows may begin with one prompt.
//! - Rows of one matrix are copied to rows of another: last hidden states, parts of the head.
//! - The likeliest token of each row of logits `[rows, vocab]`, the lowest of equals; NaN counts as −∞.

#[doc(hidden)]
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
