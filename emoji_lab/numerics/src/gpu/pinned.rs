//! Page-locked host memory, from which the GPU copies without the host's waiting.

use std::ffi::c_void;
use std::fmt;

use cudarc::driver::result;

use super::Gpu;
use super::pointer::Number;
use crate::error::Result;

/// Page-locked host memory.
pub struct Pinned {
    gpu: Gpu,
    ptr: *mut c_void,
    bytes: usize,
}

// SAFETY: plain memory, reached through `&mut self`.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        gpu.bind()?;
        // SAFETY: a plain allocation.
        let ptr = unsafe { result::malloc_host(bytes, 0) }.map_err(|e| gpu.error(e.0))?;
        let mut pinned = Self { gpu: gpu.clone(), ptr, bytes };
        // It holds what was there before; a graph's trial run reads all columns as token ids.
        pinned.as_mut_slice::<u8>().fill(0);
        Ok(pinned)
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn as_mut_slice<T: Number>(&mut self) -> &mut [T] {
        // SAFETY: the memory is page-aligned, ours alone, and any bytes are a `Number`.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.cast(), self.bytes / size_of::<T>()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.synchronize().is_ok() {
            // SAFETY: allocated by `malloc_host`, freed once.
            let _ = unsafe { result::free_host(self.ptr) };
        }
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pinned({} bytes)", self.bytes)
    }
}
