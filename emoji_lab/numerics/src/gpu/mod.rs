//! An NVIDIA GPU at work: its memory, launches of kernels, matrix products (cuBLAS'), graphs. It knows
//! nothing of any model.
//!
//! Nothing here links against CUDA: driver and cuBLAS are opened when a GPU is asked for, so one build
//! runs with and without them, and what is missing is said in a sentence.
//!
//! | file | what is in it |
//! |---|---|
//! | `handle.rs` | the GPU: opened, described, its dtype chosen |
//! | `several.rs` | several GPUs as one device |
//! | `driver_errors.rs` | what is wrong with driver, cuBLAS or GPU, in sentences |
//! | `shared.rs` | the shared memory that kernels ask for |
//! | `pointer.rs` | typed addresses on the GPU |
//! | `memory.rs`, `placed.rs` | device memory, with errors that say how much was needed; many buffers in one piece of it |
//! | `pinned.rs` | page-locked host memory |
//! | `launch.rs`, `gemm.rs` | a kernel's launch, a matrix product |
//! | `rows.rs` | launches of kernels whose blocks have one row or a few |
//! | `mirror.rs` | structs that CUDA has as well, their layouts asserted on both sides |
//! | `nccl.rs` | sums over several GPUs |
//! | `graph.rs` | work that is captured once and replayed |

#[doc(hidden)]
pub mod driver_errors;
#[doc(hidden)]
pub mod gemm;
#[doc(hidden)]
pub mod graph;
mod handle;
#[doc(hidden)]
pub mod launch;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod mirror;
#[doc(hidden)]
pub mod nccl;
#[doc(hidden)]
pub mod pinned;
#[doc(hidden)]
pub mod placed;
#[doc(hidden)]
pub mod pointer;
#[doc(hidden)]
pub mod rows;
mod several;
#[doc(hidden)]
pub mod shared;

pub use handle::Gpu;
pub use handle::Limits;
