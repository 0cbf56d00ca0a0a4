//! The numbers of a step that kernels read, and the ones they leave.

use super::adamw::Factors;
use crate::gpu::mirror::mirrored_in_memory;
use crate::gpu::pointer::{DevicePtr, Number};

/// The numbers that kernels read.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct Step {
    pub seed: u64,
    pub pass: u64,
    pub loss_factor: f32,
    pub max_grad_norm: f32,
    pub factors: Factors,
    pub first_micro: i32,
    /// As in `factors`, for the embedding and the head.
    pub embedding_decay: f32,
    pub embedding_step_size: f32,
    /// The optimizer step's last pass, on whatever GPU: its update's rounding is drawn by it.
    pub last_pass: u64,
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
pub struct StepResult {
    /// Sum of the losses of all targets, nats.
    pub loss: f64,
    pub grad_norm: f64,
    pub(crate) gradient_scale: f32,
    pub finite: i32,
}

mirrored_in_memory! {
    StepResult: 24 { loss: 0, grad_norm: 8, gradient_scale: 16, finite: 20 }
}

// SAFETY: four numbers.
unsafe impl Number for StepResult {}

impl StepResult {
    /// Where a result on the GPU has its loss.
    pub fn loss_of(result: DevicePtr<Self>) -> DevicePtr<f64> {
        // It is the first field, as is asserted above.
        result.cast()
    }
}
