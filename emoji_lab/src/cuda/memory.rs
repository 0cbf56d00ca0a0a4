//! Device memory, with errors that say how much was needed.

use cudarc::driver::{result, sys};

use super::Gpu;
use super::gpu::describe;
use crate::error::{Error, Result};

/// Bytes on the card, freed when dropped.
pub(crate) struct Memory {
    gpu: Gpu,
    ptr: u64,
    bytes: usize,
}

impl Memory {
    /// `bytes` of zeros for `what`.
    pub(crate) fn zeros(gpu: &Gpu, bytes: usize, what: &str) -> Result<Self> {
        Self::filled(gpu, bytes, 0, what)
    }

    /// `bytes` for `what`, in which every number is NaN, f32 or bf16: what a kernel forgets to write is
    /// found out instead of passing for a zero.
    pub(crate) fn poisoned(gpu: &Gpu, bytes: usize, what: &str) -> Result<Self> {
        Self::filled(gpu, bytes, 0xff, what)
    }

    fn filled(gpu: &Gpu, bytes: usize, with: u8, what: &str) -> Result<Self> {
        gpu.bind()?;
        let bytes = bytes.max(16);
        // SAFETY: a plain allocation of the context that is current.
        let ptr = unsafe { result::malloc_sync(bytes) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(gpu, bytes, what),
            code => gpu.error(code),
        })?;
        let memory = Self { gpu: gpu.clone(), ptr, bytes };
        // SAFETY: the range was just allocated.
        unsafe { result::memset_d8_async(ptr, with, bytes, gpu.raw_stream()) }.map_err(|e| gpu.error(e.0))?;
        Ok(memory)
    }

    /// No memory.
    pub(crate) fn none(gpu: &Gpu) -> Self {
        Self { gpu: gpu.clone(), ptr: 0, bytes: 0 }
    }

    /// A copy of `values` on the card.
    pub(crate) fn from_slice<T: Copy>(gpu: &Gpu, values: &[T], what: &str) -> Result<Self> {
        let memory = Self::zeros(gpu, size_of_val(values), what)?;
        memory.write(0, values)?;
        Ok(memory)
    }

    /// Where it begins.
    pub(crate) fn ptr(&self) -> u64 {
        self.ptr
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Overwrites what begins at byte `offset`. Returns when `values` may be changed again.
    pub(crate) fn write<T: Copy>(&self, offset: usize, values: &[T]) -> Result<()> {
        self.check(offset, size_of_val(values))?;
        if values.is_empty() {
            return Ok(());
        }
        self.gpu.bind()?;
        // SAFETY: the range was checked; a `Copy` type without references is plain bytes.
        unsafe { result::memcpy_htod_async(self.ptr + offset as u64, values, self.gpu.raw_stream()) }
            .map_err(|e| self.gpu.error(e.0))?;
        self.gpu.synchronize()
    }

    /// The `values.len()` values from byte `offset` on.
    pub(crate) fn read<T: Copy>(&self, offset: usize, values: &mut [T]) -> Result<()> {
        self.check(offset, size_of_val(values))?;
        self.gpu.bind()?;
        // SAFETY: the range was checked; the caller reads types of which all bytes are valid.
        unsafe { result::memcpy_dtoh_async(values, self.ptr + offset as u64, self.gpu.raw_stream()) }
            .map_err(|e| self.gpu.error(e.0))?;
        self.gpu.synchronize()
    }

    /// Where `bytes` from byte `offset` on begin.
    pub(super) fn range(&self, offset: usize, bytes: usize) -> Result<u64> {
        self.check(offset, bytes)?;
        Ok(self.ptr + offset as u64)
    }

    fn check(&self, offset: usize, bytes: usize) -> Result<()> {
        match offset + bytes <= self.bytes {
            true => Ok(()),
            false => Err(Error::device(
                self.gpu.short_name(),
                format!("bytes {offset} to {} of a buffer of {}", offset + bytes, self.bytes),
                "This is a fault of emoji_lab",
            )),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // Work that still reads it must be done first. Errors have nowhere to go here, and the next
        // call that can fail reports them.
        if self.ptr != 0 && self.gpu.synchronize().is_ok() {
            // SAFETY: allocated by `malloc_sync`, freed once.
            let _ = unsafe { result::free_sync(self.ptr) };
        }
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} bytes on {})", self.bytes, self.gpu.short_name())
    }
}

fn out_of_memory(gpu: &Gpu, bytes: usize, what: &str) -> Error {
    let gib = |bytes: usize| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    let there = gpu.memory().map_or_else(
        |_| describe(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        |(free, total)| format!("{} of {} are free", gib(free), gib(total)),
    );
    Error::device(
        gpu.short_name(),
        format!("out of memory: {what} needs {}, and {there}", gib(bytes)),
        "Give back what is not needed any more, as drop(trainer) of an earlier run of the cell, close what else is on the GPU \
         (nvidia-smi), lower per_device_train_batch_size or max_length, take \
         optim_state_dtype: DType::BF16, or leave embed_tokens and lm_head out of modules_to_save; or compute on the CPU: Device::Cpu",
    )
}

/// Lays buffers out one behind the other: once to count, once with the memory there.
pub(crate) struct Layout {
    next: u64,
}

impl Layout {
    /// From `base` on.
    pub(crate) fn new(base: u64) -> Self {
        Self { next: base }
    }

    /// Room for `bytes`, aligned for every kind of access.
    pub(crate) fn take(&mut self, bytes: usize) -> u64 {
        let at = self.next;
        self.next += bytes.next_multiple_of(256) as u64;
        at
    }

    /// Where the last buffer ends.
    pub(crate) fn end(&self) -> u64 {
        self.next
    }
}
