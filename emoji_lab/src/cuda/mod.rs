//! Gemma 3 on an NVIDIA GPU: the same forward and backward passes as [`crate::model`]'s, made of
//! few launches and replayed from CUDA graphs.
//!
//! It is an engine for the trainer ([`crate::train`]) and a source of tokens for [`crate::model`], neither
//! of which knows of it. The kernels lie with their ops (`ops/*/kernel.cu`), what launches them in `gpu/`.
//!
//! | file | what is in it |
//! |---|---|
//! | `limits.rs` | what the kernels take of a model |
//! | `network.rs`, `upload.rs` | weights and adapters as the kernels want them; how they get there |
//! | `activations.rs` | everything a pass writes, laid out once |
//! | `forward.rs`, `backward.rs`, `head.rs` | the passes |
//! | `head_pieces.rs` | a trained head whose gradient is not kept in memory |
//! | `room.rs` | room for the longest batch |
//! | `places.rs`, `arena.rs`, `stored.rs` | what is trained: where it lies; values, gradients and moments; their forms |
//! | `rooms.rs` | room on the host for what checkpoints copy |
//! | `step.rs` | what changes from step to step |
//! | `finetune.rs`, `update.rs`, `evaluate.rs` | graphs and their steps; what is in a step; losses alone |
//! | `ranks.rs` | several GPUs that train together |
//! | `decode.rs`, `sampler.rs`, `generator.rs` | generation with a key/value cache: a token's pass, its choice, the sequence |
//! | `rows.rs`, `batch.rs` | the same for many sequences side by side: a step's pass, and who has which row |

mod activations;
mod arena;
mod backward;
mod batch;
mod decode;
mod engine;
mod evaluate;
mod finetune;
mod forward;
mod generator;
mod head;
mod head_pieces;
mod limits;
mod network;
mod places;
mod ranks;
mod room;
mod rooms;
mod rows;
mod sampler;
mod step;
mod stored;
mod update;
mod upload;
