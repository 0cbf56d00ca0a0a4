//! A kernel's launch.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::Gpu;
use super::shared::UNASKED;
use crate::error::Result;

/// How many blocks, of how many threads, with how much shared memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) blocks: (u32, u32),
    pub(crate) threads: (u32, u32),
    pub(crate) shared_bytes: usize,
    /// Whether the kernel may begin before the one in front of it has ended: it then calls
    /// `wait_for_previous` (`ops/common.cuh`) before it touches anything that is not constant.
    pub(crate) early: bool,
}

impl Grid {
    /// `blocks` of `threads`.
    pub(crate) fn new(blocks: usize, threads: usize) -> Self {
        Self { blocks: (blocks as u32, 1), threads: (threads as u32, 1), shared_bytes: 0, early: false }
    }

    /// Begins early, see [`Grid::early`].
    pub(crate) fn begins_early(self) -> Self {
        Self { early: true, ..self }
    }

    /// With `bytes` of shared memory a block.
    pub(crate) fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: bytes, ..self }
    }
}

/// Puts a kernel on the stream. `arguments` point to the values, in the kernel's order.
///
/// # Safety
/// Number, types and order of the arguments must be the kernel's, and pointers among them must be
/// to device memory as large as the kernel takes it to be.
pub(crate) unsafe fn enqueue(
    gpu: &Gpu,
    kernel: &str,
    typed: bool,
    grid: Grid,
    arguments: &mut [*mut c_void],
) -> Result<()> {
    let function = gpu.function(kernel, typed)?;
    let (blocks, threads) = (grid.blocks, grid.threads);
    if grid.shared_bytes > UNASKED {
        gpu.allow_shared(function)?;
    }
    if grid.early && gpu.overlaps_kernels() {
        // SAFETY: a union of plain numbers.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = sys::CUlaunchConfig {
            gridDimX: blocks.0,
            gridDimY: blocks.1,
            gridDimZ: 1,
            blockDimX: threads.0,
            blockDimY: threads.1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: gpu.raw_stream(),
            attrs: &raw mut attribute,
            numAttrs: 1,
        };
        // SAFETY: the caller's; the configuration outlives the call.
        let code = unsafe {
            sys::cuLaunchKernelEx(&config, function.0, arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        return code.result().map_err(|e| gpu.error(e.0));
    }
    // SAFETY: the caller's.
    unsafe {
        result::launch_kernel(
            function.0,
            (blocks.0, blocks.1, 1),
            (threads.0, threads.1, 1),
            grid.shared_bytes as u32,
            gpu.raw_stream(),
            arguments,
        )
    }
    .map_err(|e| gpu.error(e.0))
}

/// `launch!(gpu, typed "name", grid, arguments…)`: a kernel in the version of the compute type;
/// `plain "name"` for one that has no versions. Must stand in an `unsafe` block.
macro_rules! launch {
    ($gpu:expr, typed $name:expr, $grid:expr, $($argument:expr),+ $(,)?) => {
        $crate::cuda::launch::enqueue($gpu, $name, true, $grid, &mut [$(&mut { $argument } as *mut _ as *mut std::ffi::c_void),+])
    };
    ($gpu:expr, plain $name:expr, $grid:expr, $($argument:expr),+ $(,)?) => {
        $crate::cuda::launch::enqueue($gpu, $name, false, $grid, &mut [$(&mut { $argument } as *mut _ as *mut std::ffi::c_void),+])
    };
}
pub(crate) use launch;
