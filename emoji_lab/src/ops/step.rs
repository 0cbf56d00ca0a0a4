//! The numbers of a step that kernels read, and the ones they leave.

use super::adamw::Factors;
use crate::gpu::mirror::mirrored_in_memory;
use crate::gpu::pointer::{DevicePtr, Number};

/// The numbers that kernels read.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Step {
    pub(crate) seed: u64,
    pub(crate) pass: u64,
    pub(crate) loss_factor: f32,
    pub(crate) max_grad_norm: f32,
    pub(crate) factors: Factors,
    pub(crate) first_micro: i32,
    /// As in `factors`, for the embedding and the head.
    pub(crate) embedding_decay: f32,
    pub(crate) embedding_step_size: f32,
    /// The optimizer step's last pass, on whatever GPU: its update's rounding is drawn by it.
    pub(crate) last_pass: u64,
}

mirrored_in_memory! {
    Step: 72 {
        seed: 0, pass: 8, loss_factor: 16, max_grad_norm: 20, factors: 24, first_micro: 52, embedding_decay: 56,
        embedding_step_size: 60, last_pass: 64,
    }
}

/// What the host reads of an optimizer step.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct StepResult {
    /// Sum of the losses of all targets, nats.
    pub(crate) loss: f64,
    pub(crate) grad_norm: f64,
    pub(crate) gradient_scale: f32,
    pub(crate) finite: i32,
}

mirrored_in_memory! {
    StepResult: 24 { loss: 0, grad_norm: 8, gradient_scale: 16, finite: 20 }
}

// SAFETY: four numbers.
unsafe impl Number for StepResult {}

impl StepResult {
    /// Where a result on the GPU has its loss.
    pub(crate) fn loss_of(result: DevicePtr<Self>) -> DevicePtr<f64> {
        // It is the first field, as is asserted above.
        result.cast()
    }
}
