//! Typed addresses in the GPU's memory.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZeroU64;

use half::bf16;

use super::Gpu;

/// Where values of type `T` begin in the GPU's memory. What kernels take as a pointer that may be null
/// is an `Option` of it, of the same size.
///
/// Two that point to different types are different types themselves, and none becomes another but by
/// [`cast`](Self::cast): a buffer in another's place does not compile.
#[repr(transparent)]
pub struct DevicePtr<T> {
    address: NonZeroU64,
    of: PhantomData<fn() -> T>,
}

/// Values of the compute type: f32 or bf16, as the GPU was opened ([`Gpu::dtype`]).
#[derive(Debug, Clone, Copy)]
pub enum Compute {}

/// AdamW's moments: f32 or bf16, as the optimizer's `state_dtype` says.
#[derive(Debug, Clone, Copy)]
pub enum Moment {}

/// What device memory is made of.
pub trait Element {
    /// Bytes of one value on this GPU.
    fn size(gpu: &Gpu) -> usize;
}

impl<T: Plain> Element for T {
    fn size(_: &Gpu) -> usize {
        size_of::<T>()
    }
}

impl Element for Compute {
    fn size(gpu: &Gpu) -> usize {
        gpu.size()
    }
}

/// What goes over to the GPU as it lies in memory: numbers, addresses, and structs of them.
///
/// # Safety
/// A value must have no gaps: all its bytes are set.
pub unsafe trait Plain: Copy {}

/// What comes back from the GPU, too.
///
/// # Safety
/// Any bytes must be a value.
pub unsafe trait Number: Plain {}

macro_rules! numbers {
    ($($type:ty),+) => {
        $(
            // SAFETY: a number has no gaps.
            unsafe impl Plain for $type {}
            // SAFETY: and its bytes may be any.
            unsafe impl Number for $type {}
        )+
    };
}
numbers!(u8, u16, i16, bf16, u32, i32, f32, u64, f64);

/// Values as the bytes they are.
pub fn as_bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` values have no gaps, and bytes may lie anywhere.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl<T> DevicePtr<T> {
    /// The driver's address, unless it is null.
    pub fn new(address: u64) -> Option<Self> {
        Some(Self { address: NonZeroU64::new(address)?, of: PhantomData })
    }

    /// An address that nothing is at, to count from.
    pub const fn nowhere() -> Self {
        Self { address: NonZeroU64::MIN, of: PhantomData }
    }

    /// For the driver and cuBLAS.
    pub fn address(self) -> u64 {
        self.address.get()
    }

    /// The same address as one of other values.
    pub fn cast<U>(self) -> DevicePtr<U> {
        DevicePtr { address: self.address, of: PhantomData }
    }

    /// Where value number `n` is.
    pub fn at(self, gpu: &Gpu, n: usize) -> Self
    where
        T: Element,
    {
        Self { address: self.address.saturating_add((n * T::size(gpu)) as u64), of: PhantomData }
    }
}

impl<T> Clone for DevicePtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DevicePtr<T> {}

impl<T> fmt::Debug for DevicePtr<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

const _: () = assert!(size_of::<Option<DevicePtr<f32>>>() == size_of::<u64>());

// No pointer turns into one of another type by itself: were there such a conversion, both traits would fit,
// and the compiler would ask which.
const _: () = {
    trait Fits<Which> {
        const IT_DOES: () = ();
    }
    impl<T> Fits<u8> for T {}
    impl<T: Into<DevicePtr<f32>>> Fits<u16> for T {}
    let () = <DevicePtr<Compute> as Fits<_>>::IT_DOES;
    let () = <DevicePtr<bf16> as Fits<_>>::IT_DOES;
    let () = <DevicePtr<i32> as Fits<_>>::IT_DOES;
    let () = <u64 as Fits<_>>::IT_DOES;
};
