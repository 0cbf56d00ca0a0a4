//! Device memory, with errors that say how much was needed.

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use cudarc::driver::{result, sys};

use super::Gpu;
use super::handle::describe;
use super::pointer::{Compute, DevicePtr, Element, Number, Plain};
use crate::error::{Error, Result};

/// Values of type `T` on the GPU, freed when dropped.
pub struct Memory<T> {
    allocation: Allocation,
    of: PhantomData<fn() -> T>,
}

/// Bytes on the GPU.
struct Allocation {
    gpu: Gpu,
    start: DevicePtr<u8>,
    bytes: usize,
}

impl Allocation {
    fn filled(gpu: &Gpu, bytes: usize, with: u8, what: &str) -> Result<Self> {
        gpu.bind()?;
        let bytes = bytes.max(16);
        // SAFETY: a plain allocation of the context that is current.
        let address = unsafe { result::malloc_sync(bytes) }.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of_memory(gpu, bytes, what),
            code => gpu.error(code),
        })?;
        let Some(start) = DevicePtr::new(address) else {
            return Err(out_of_memory(gpu, bytes, what));
        };
        gpu.held().fetch_add(bytes, Ordering::Relaxed);
        let allocation = Self { gpu: gpu.clone(), start, bytes };
        // SAFETY: the range was just allocated.
        unsafe { result::memset_d8_async(address, with, bytes, gpu.raw_stream()) }
            .map_err(|e| gpu.error(e.0))?;
        Ok(allocation)
    }

    /// That `bytes` bytes from `start` on are within.
    fn check(&self, start: u64, bytes: usize) -> Result<()> {
        let offset = start.wrapping_sub(self.start.address()) as usize;
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(Error::device(
                self.gpu.short_name(),
                format!("{bytes} bytes at {offset} of a buffer of {}", self.bytes),
                "This is a fault of emoji_lab",
            )),
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Work that still reads it must be done first. Errors have nowhere to go here, and the next
        // call that can fail reports them.
        if self.gpu.synchronize().is_ok() {
            // SAFETY: allocated by `malloc_sync`, freed once.
            let _ = unsafe { result::free_sync(self.start.address()) };
            self.gpu.held().fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

impl<T> Memory<T> {
    /// `len` zeros for `what`.
    pub fn zeros(gpu: &Gpu, len: usize, what: &str) -> Result<Self>
    where
        T: Element,
    {
        let allocation = Allocation::filled(gpu, len * T::size(gpu), 0, what)?;
        Ok(Self { allocation, of: PhantomData })
    }

    /// `len` values for `what`, in which every number is NaN, f32 or bf16: what a kernel forgets to write
    /// is found out instead of passing for a zero.
    pub fn poisoned(gpu: &Gpu, len: usize, what: &str) -> Result<Self>
    where
        T: Element,
    {
        let allocation = Allocation::filled(gpu, len * T::size(gpu), 0xff, what)?;
        Ok(Self { allocation, of: PhantomData })
    }

    /// Where it begins.
    pub fn ptr(&self) -> DevicePtr<T> {
        self.allocation.start.cast()
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.allocation.bytes
    }

    /// The same, its type forgotten: to be kept.
    pub fn untyped(self) -> Memory<u8> {
        Memory { allocation: self.allocation, of: PhantomData }
    }

    /// Where `len` values from number `offset` on begin.
    pub fn range(&self, offset: usize, len: usize) -> Result<DevicePtr<T>>
    where
        T: Element,
    {
        let gpu = &self.allocation.gpu;
        let start = self.ptr().at(gpu, offset);
        self.allocation.check(start.address(), len * T::size(gpu))?;
        Ok(start)
    }

    /// Overwrites what begins at `to`, which must be within. Returns when `values` may be changed again.
    pub fn write_at<U: Plain>(&self, to: DevicePtr<U>, values: &[U]) -> Result<()> {
        let gpu = &self.allocation.gpu;
        self.allocation.check(to.address(), size_of_val(values))?;
        if values.is_empty() {
            return Ok(());
        }
        gpu.bind()?;
        // SAFETY: the range was checked; `Plain` values are their bytes.
        unsafe { result::memcpy_htod_async(to.address(), values, gpu.raw_stream()) }
            .map_err(|e| gpu.error(e.0))?;
        gpu.synchronize()
    }

    /// The `values.len()` values that begin at `from`, which must be within.
    pub fn read_at<U: Number>(&self, from: DevicePtr<U>, values: &mut [U]) -> Result<()> {
        let gpu = &self.allocation.gpu;
        self.allocation.check(from.address(), size_of_val(values))?;
        gpu.bind()?;
        // SAFETY: the range was checked; any bytes are a `Number`.
        unsafe { result::memcpy_dtoh_async(values, from.address(), gpu.raw_stream()) }
            .map_err(|e| gpu.error(e.0))?;
        gpu.synchronize()
    }
}

impl<T: Plain> Memory<T> {
    /// A copy of `values` on the GPU.
    pub fn from_slice(gpu: &Gpu, values: &[T], what: &str) -> Result<Self> {
        let memory = Self::zeros(gpu, values.len(), what)?;
        memory.write(0, values)?;
        Ok(memory)
    }

    /// Overwrites what begins at value number `offset`. Returns when `values` may be changed again.
    pub fn write(&self, offset: usize, values: &[T]) -> Result<()> {
        self.write_at(self.ptr().at(&self.allocation.gpu, offset), values)
    }
}

impl<T: Number> Memory<T> {
    /// The `values.len()` values from number `offset` on.
    pub fn read(&self, offset: usize, values: &mut [T]) -> Result<()> {
        self.read_at(self.ptr().at(&self.allocation.gpu, offset), values)
    }
}

impl Memory<Compute> {
    /// Overwrites what begins at value number `offset`, rounded to the compute type.
    pub fn write_rounded(&self, offset: usize, values: &[f32]) -> Result<()> {
        let gpu = &self.allocation.gpu;
        let to = self.ptr().at(gpu, offset);
        if !gpu.bf16() {
            return self.write_at(to.cast(), values);
        }
        let rounded: Vec<_> = values.iter().map(|value| half::bf16::from_f32(*value)).collect();
        self.write_at(to.cast(), &rounded)
    }

    /// The `len` values from number `offset` on, as f32.
    pub fn read_widened(&self, offset: usize, len: usize) -> Result<Vec<f32>> {
        let gpu = &self.allocation.gpu;
        let from = self.ptr().at(gpu, offset);
        if !gpu.bf16() {
            let mut values = vec![0f32; len];
            self.read_at(from.cast(), &mut values)?;
            return Ok(values);
        }
        let mut rounded = vec![half::bf16::ZERO; len];
        self.read_at(from.cast(), &mut rounded)?;
        Ok(rounded.into_iter().map(half::bf16::to_f32).collect())
    }
}

/// Zeros in place of `len` values from `start` on, in the stream's order.
///
/// # Safety
/// They must be memory of this GPU.
pub unsafe fn clear<T: Element>(gpu: &Gpu, start: DevicePtr<T>, len: usize) -> Result<()> {
    // SAFETY: the caller's.
    unsafe { result::memset_d8_async(start.address(), 0, len * T::size(gpu), gpu.raw_stream()) }
        .map_err(|e| gpu.error(e.0))
}

impl<T> std::fmt::Debug for Memory<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({} bytes on {})", self.bytes(), self.allocation.gpu.short_name())
    }
}

/// What a process' context and cuBLAS take at most, beside what it asked for.
const OF_CONTEXT: usize = 1 << 30;

/// How much of a GPU is free, and who has the rest: `held` bytes are this process' own buffers.
fn who_has_it(free: usize, total: usize, held: usize) -> String {
    let gib = |bytes: usize| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
    let others = total.saturating_sub(free).saturating_sub(held);
    let whose = match others > OF_CONTEXT {
        true => format!("this process has {}, other processes about {}", gib(held), gib(others)),
        false => format!("this process has {}", gib(held)),
    };
    format!("{} of {} are free ({whose})", gib(free), gib(total))
}

fn out_of_memory(gpu: &Gpu, bytes: usize, what: &str) -> Error {
    let there = gpu.memory().map_or_else(
        |_| describe(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY),
        |(free, total)| who_has_it(free, total, gpu.held().load(Ordering::Relaxed)),
    );
    Error::device(
        gpu.short_name(),
        format!("out of memory: {what} needs {:.2} GiB, and {there}", bytes as f64 / f64::from(1 << 30)),
        "Give back what is not needed any more, as drop(trainer) of an earlier run of the cell, close what else is on the GPU \
         (nvidia-smi), lower per_device_train_batch_size or max_length, take \
         optim_state_dtype: DType::BF16, or leave embed_tokens and lm_head out of modules_to_save; or compute on the CPU: Device::Cpu",
    )
}

#[cfg(test)]
mod tests {
    use super::who_has_it;

    #[test]
    fn another_process_is_named() {
        let gib = |n: f64| (n * f64::from(1 << 30)) as usize;
        assert_eq!(
            who_has_it(gib(76.0), gib(79.0), gib(2.5)),
            "76.00 GiB of 79.00 GiB are free (this process has 2.50 GiB)"
        );
        assert_eq!(
            who_has_it(gib(3.0), gib(79.0), gib(2.5)),
            "3.00 GiB of 79.00 GiB are free (this process has 2.50 GiB, other processes about 73.50 GiB)"
        );
        // The driver's figure is of another moment than ours.
        assert!(who_has_it(gib(79.0), gib(79.0), gib(2.0)).contains("this process has 2.00 GiB)"));
    }
}
