//! The few coarse operations that Gemma 3 trains with, each with its hand-written backward pass.
//!
//! One folder an op: `mod.rs` says what it computes (shapes, formula, source), `cpu.rs` is the
//! reference, `kernel.cu` and `cuda.rs` are its kernels and their launches on a GPU, where some take
//! in what stands beside them (`emoji_lab::cuda` puts them together). Nothing here is tracked by candle's autograd: every op
//! returns what its backward needs, and `emoji_lab::model::Gemma3` calls the backwards itself, in
//! reverse order. That way no gradient can be dropped in silence (candle's fused ops do), no
//! gradient is allocated twice, and weight gradients are added straight into the trainer's arena.
//!
//! Tokens are packed: a batch of sequences is one `[tokens, hidden]` matrix without padding, and
//! only attention looks at where a sequence begins.

pub mod adamw;
pub mod attention;
#[doc(hidden)]
pub mod columns;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod decode;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod decode_rows;
pub mod embedding;
pub mod geglu;
#[doc(hidden)]
pub mod gemm;
pub mod grad_norm;
pub mod lazy;
pub mod linear_cross_entropy;
pub mod lora_linear;
#[doc(hidden)]
pub mod math;
#[doc(hidden)]
pub mod pool;
pub mod replaced;
#[doc(hidden)]
pub mod residual;
pub mod rms_norm;
pub mod rope;
#[doc(hidden)]
pub mod sample;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod step;
#[doc(hidden)]
pub mod team;
#[cfg(all(test, feature = "cuda"))]
pub(crate) mod testing;

#[cfg(test)]
pub(crate) mod finite_difference;

/// A target that takes no part in the loss (padding, prompts): PyTorch's `ignore_index`.
pub const IGNORE_INDEX: i64 = -100;
