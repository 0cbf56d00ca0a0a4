//! Gemma 3 on an NVIDIA GPU: the same forward and backward passes as [`crate::model`]'s, made of
//! few launches and replayed from CUDA graphs.
//!
//! The kernels lie with their ops (`ops/*/kernel.cu`); the matrix products are cuBLAS'. Nothing here
//! links against CUDA: driver and cuBLAS are opened when a GPU is asked for, so one build runs with
//! and without them, and what is missing is said in a sentence.
//!
//! | file | what is in it |
//! |---|---|
//! | `gpu.rs` | the card: opened, described, its dtype chosen |
//! | `trouble.rs` | what is wrong with driver, cuBLAS or GPU, in sentences |
//! | `limits.rs`, `shared.rs` | what the kernels take of a model, and the shared memory they ask for |
//! | `pointer.rs` | typed addresses on the GPU |
//! | `memory.rs`, `placed.rs` | device memory, with errors that say how much was needed; many buffers in one piece of it |
//! | `launch.rs`, `gemm.rs` | a kernel's launch, a matrix product |
//! | `mirror.rs` | structs that CUDA has as well, their layouts asserted on both sides |
//! | `network.rs` | weights and adapters as the kernels want them |
//! | `activations.rs` | everything a pass writes, laid out once |
//! | `forward.rs`, `backward.rs`, `head.rs` | the passes |
//! | `arena.rs`, `stored.rs` | what is trained: values, gradients and moments, and their forms |
//! | `step.rs` | what changes from step to step |
//! | `finetune.rs` | graphs, optimizer steps, evaluation |
//! | `graph.rs` | work that is captured once and replayed |
//! | `decode.rs`, `sampler.rs`, `generator.rs` | generation with a key/value cache: a token's pass, its choice, the sequence |
//! | `testing/` | what the tests of the ops' kernels share |

mod activations;
mod arena;
mod backward;
mod decode;
mod engine;
mod finetune;
mod forward;
mod gemm;
mod generator;
mod gpu;
mod graph;
mod head;
pub(crate) mod launch;
mod limits;
pub(crate) mod memory;
pub(crate) mod mirror;
mod network;
mod placed;
pub(crate) mod pointer;
mod sampler;
pub(crate) mod shared;
pub(crate) mod step;
mod stored;
#[cfg(test)]
pub(crate) mod testing;
mod trouble;

pub(crate) use engine::CudaEngine;
pub(crate) use generator::CudaGenerator;
pub use gpu::Gpu;
