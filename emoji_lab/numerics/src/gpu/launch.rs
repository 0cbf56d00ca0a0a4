//! A kernel's launch.

use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::{result, sys};

use super::Gpu;
use super::shared::UNASKED;
use crate::error::Result;

/// How many blocks, of how many threads, with how much shared memory.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: (u32, u32),
    pub threads: (u32, u32),
    pub shared_bytes: usize,
    /// Whether the kernel may begin before the one in front of it has ended: it then calls
    /// `wait_for_previous` (`ops/common.cuh`) before it touches anything that is not constant.
    pub early: bool,
}

impl Grid {
    /// `blocks` of `threads`.
    pub fn new(blocks: usize, threads: usize) -> Self {
        Self { blocks: (blocks as u32, 1), threads: (threads as u32, 1), shared_bytes: 0, early: false }
    }

    /// Begins early, see [`Grid::early`].
    pub(crate) fn begins_early(self) -> Self {
        Self { early: true, ..self }
    }

    /// With `bytes` of shared memory per block.
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared_bytes: bytes, ..self }
    }

    /// With `rows` rows of blocks.
    pub fn rows(self, rows: usize) -> Self {
        Self { blocks: (self.blocks.0, rows as u32), ..self }
    }
}

/// A kernel that takes one argument, the struct `A`. That it does is checked by a test (`mirror.rs`).
pub struct Kernel<A> {
    name: &'static str,
    typed: bool,
    arguments: PhantomData<fn(A)>,
}

impl<A: Copy> Kernel<A> {
    /// One with a version for each compute type, `name_f32` and `name_bf16`.
    pub const fn typed(name: &'static str) -> Self {
        Self { name, typed: true, arguments: PhantomData }
    }

    /// One without.
    pub const fn plain(name: &'static str) -> Self {
        Self { name, typed: false, arguments: PhantomData }
    }

    /// Puts it on the stream.
    ///
    /// # Safety
    /// Pointers among the arguments must be to device memory as large as the kernel takes it to be, and
    /// numbers such as it can compute with.
    pub unsafe fn launch(&self, gpu: &Gpu, grid: Grid, arguments: A) -> Result<()> {
        let function = gpu.function(self.name, self.typed)?;
        let (blocks, threads) = (grid.blocks, grid.threads);
        if grid.shared_bytes > UNASKED {
            gpu.allow_shared(function)?;
        }
        // The driver copies what the kernel's one parameter points to.
        let mut parameters = [(&raw const arguments).cast_mut().cast::<c_void>()];
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
            // SAFETY: the caller's; configuration and arguments outlive the call.
            let code = unsafe {
                sys::cuLaunchKernelEx(&config, function.0, parameters.as_mut_ptr(), std::ptr::null_mut())
            };
            return code.result().map_err(|e| gpu.error(e.0));
        }
        // SAFETY: the caller's; the arguments outlive the call.
        unsafe {
            result::launch_kernel(
                function.0,
                (blocks.0, blocks.1, 1),
                (threads.0, threads.1, 1),
                grid.shared_bytes as u32,
                gpu.raw_stream(),
                &mut parameters,
            )
        }
        .map_err(|e| gpu.error(e.0))
    }
}
