//! GeGLU on a GPU, gate and up in one row.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::launch::Kernel;
use crate::gpu::mirror::mirrored;
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::gpu::{rows, shared};
use crate::ops::lora_linear::cuda::Adapters;
use crate::ops::step::Step;

/// `y = gelu(gate) · up`, and the adapter's u after each row of it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct GegluForward {
    /// `[tokens, 2 · width]`.
    pub gate_up: DevicePtr<Compute>,
    /// `[tokens, ldy]`.
    pub y: DevicePtr<Compute>,
    pub step: DevicePtr<Step>,
    pub adapters: Adapters,
    pub ldy: i32,
    pub width: i32,
}

mirrored! {
    GegluForward: 88 { gate_up: 0, y: 8, step: 16, adapters: 24, ldy: 80, width: 84 }
}

const FORWARD: Kernel<GegluForward> = Kernel::typed("geglu_forward");
const FORWARD_2: Kernel<GegluForward> = Kernel::typed("geglu_forward_2");
const FORWARD_4: Kernel<GegluForward> = Kernel::typed("geglu_forward_4");

impl GegluForward {
    /// For `tokens` rows, up to `a_block` of them a block, four, two or one: the adapters' A is read once for them.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize, a_block: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { rows::launch([&FORWARD, &FORWARD_2, &FORWARD_4], gpu, tokens, a_block, self.bytes(), self) }
    }

    /// The same for many rows without adapters.
    ///
    /// # Safety
    /// As [`GegluForward::launch`].
    pub unsafe fn launch_many(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let threads = rows::threads_for_many(self.width as usize);
        // SAFETY: the caller's.
        unsafe { rows::launch_many(&FORWARD, gpu, tokens, threads, self.bytes(), self) }
    }

    fn bytes(&self) -> usize {
        shared::geglu_forward(self.width as usize, self.adapters.group())
    }
}

/// The gradient of gate and up, given that of `y` and of the adapter's u.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct GegluBackward {
    /// `[tokens, ldy]`.
    pub dy: DevicePtr<f32>,
    /// `[tokens, 2 · width]`.
    pub gate_up: DevicePtr<Compute>,
    /// `[tokens, 2 · width]`.
    pub d_gate_up: DevicePtr<Compute>,
    pub step: DevicePtr<Step>,
    pub adapters: Adapters,
    pub ldy: i32,
    pub width: i32,
}

mirrored! {
    GegluBackward: 96 { dy: 0, gate_up: 8, d_gate_up: 16, step: 24, adapters: 32, ldy: 88, width: 92 }
}

const BACKWARD: Kernel<GegluBackward> = Kernel::typed("geglu_backward");
const BACKWARD_2: Kernel<GegluBackward> = Kernel::typed("geglu_backward_2");
const BACKWARD_4: Kernel<GegluBackward> = Kernel::typed("geglu_backward_4");

impl GegluBackward {
    /// For `tokens` rows, up to `a_block` of them a block, four, two or one: the adapters' A is read once for them.
    ///
    /// # Safety
    /// Buffers must have the shapes that the fields name.
    pub unsafe fn launch(self, gpu: &Gpu, tokens: usize, a_block: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe {
            rows::launch([&BACKWARD, &BACKWARD_2, &BACKWARD_4], gpu, tokens, a_block, self.bytes(), self)
        }
    }

    /// The same for many rows without adapters.
    ///
    /// # Safety
    /// As [`GegluBackward::launch`].
    pub unsafe fn launch_many(self, gpu: &Gpu, tokens: usize) -> Result<()> {
        let threads = rows::threads_for_many(self.width as usize);
        // SAFETY: the caller's.
        unsafe { rows::launch_many(&BACKWARD, gpu, tokens, threads, self.bytes(), self) }
    }

    fn bytes(&self) -> usize {
        shared::geglu_backward(self.width as usize, self.adapters.group())
    }
}
