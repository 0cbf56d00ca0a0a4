//! Many buffers in one piece of device memory.

use std::ops::Deref;

use super::Gpu;
use super::memory::Memory;
use super::pointer::{DevicePtr, Element, Number, Plain};
use crate::error::Result;

/// Every buffer begins at a multiple of this: enough for every kind of access.
const ALIGNMENT: usize = 256;

/// Lays buffers out one after the other.
pub struct Layout<'a> {
    gpu: &'a Gpu,
    next: DevicePtr<u8>,
}

impl<'a> Layout<'a> {
    fn new(gpu: &'a Gpu, start: DevicePtr<u8>) -> Self {
        Self { gpu, next: start }
    }

    /// A buffer of `len` values.
    pub fn take<T: Element>(&mut self, len: usize) -> DevicePtr<T> {
        let start = self.next.cast();
        let bytes = (len * T::size(self.gpu)).next_multiple_of(ALIGNMENT);
        self.next = self.next.at(self.gpu, bytes);
        start
    }
}

/// Pointers to buffers, and the memory that the buffers are in.
pub struct Placed<B> {
    memory: Memory<u8>,
    buffers: B,
}

impl<B> Placed<B> {
    /// What `place` asks for, of zeros. It runs twice: to count, and with the memory there.
    pub fn zeros(gpu: &Gpu, what: &str, place: impl Fn(&mut Layout<'_>) -> B) -> Result<Self> {
        Self::allocated(gpu, place, |bytes| Memory::zeros(gpu, bytes, what))
    }

    /// The same, of NaN ([`Memory::poisoned`]).
    pub fn poisoned(gpu: &Gpu, what: &str, place: impl Fn(&mut Layout<'_>) -> B) -> Result<Self> {
        Self::allocated(gpu, place, |bytes| Memory::poisoned(gpu, bytes, what))
    }

    fn allocated(
        gpu: &Gpu,
        place: impl Fn(&mut Layout<'_>) -> B,
        allocate: impl FnOnce(usize) -> Result<Memory<u8>>,
    ) -> Result<Self> {
        let nowhere = DevicePtr::nowhere();
        let mut count = Layout::new(gpu, nowhere);
        place(&mut count);
        let memory = allocate((count.next.address() - nowhere.address()) as usize)?;
        let buffers = place(&mut Layout::new(gpu, memory.ptr()));
        Ok(Self { memory, buffers })
    }

    /// How many bytes all of them take.
    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Overwrites what begins at `to`, within one of the buffers.
    pub fn write_at<T: Plain>(&self, to: DevicePtr<T>, values: &[T]) -> Result<()> {
        self.memory.write_at(to, values)
    }

    /// The values that begin at `from`, within one of the buffers.
    pub fn read_at<T: Number>(&self, from: DevicePtr<T>, values: &mut [T]) -> Result<()> {
        self.memory.read_at(from, values)
    }
}

impl<B> Deref for Placed<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.buffers
    }
}
