//! Trained numbers as they lie on the GPU, and their way to the host and back as f32.

use std::mem::MaybeUninit;

use cudarc::driver::{CudaEvent, result};
use half::bf16;
use rayon::prelude::*;

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::pinned::Pinned;
use crate::gpu::pointer::{Compute, DevicePtr, Moment};
use crate::ops::adamw::cuda::{joined, split};
use crate::ops::embedding::cuda::Table;

/// Numbers on the GPU, in one of three forms.
#[derive(Debug)]
pub(crate) enum Stored {
    F32(Memory<f32>),
    Bf16(Memory<bf16>),
    /// f32 in two halves, the higher of which is a bf16 by itself.
    Split(Memory<bf16>, Memory<i16>),
}

/// Elements a thread of the host converts at a time.
const CHUNK: usize = 1 << 18;

impl Stored {
    /// Zeros.
    pub(crate) fn zeros(gpu: &Gpu, len: usize, bf16: bool, what: &str) -> Result<Self> {
        match bf16 {
            true => Ok(Self::Bf16(Memory::zeros(gpu, len, what)?)),
            false => Ok(Self::F32(Memory::zeros(gpu, len, what)?)),
        }
    }

    /// Zeros of f32, in halves or whole.
    pub(crate) fn room(gpu: &Gpu, len: usize, halves: bool, what: &str) -> Result<Self> {
        match halves {
            true => Ok(Self::Split(Memory::zeros(gpu, len, what)?, Memory::zeros(gpu, len, what)?)),
            false => Self::zeros(gpu, len, false, what),
        }
    }

    /// Of what products read: where they do, of halves the higher ones. It is made in the form that fits the
    /// compute type ([`Self::room`]).
    pub(crate) fn products(&self) -> DevicePtr<Compute> {
        match self {
            Self::F32(memory) => memory.ptr().cast(),
            Self::Bf16(memory) | Self::Split(memory, _) => memory.ptr().cast(),
        }
    }

    /// Where the lower halves begin, where there are some.
    pub(crate) fn low(&self) -> Option<DevicePtr<i16>> {
        match self {
            Self::Split(_, low) => Some(low.ptr()),
            _ => None,
        }
    }

    /// Of what products read: a table that begins at element `at`.
    pub(crate) fn table(&self, gpu: &Gpu, at: usize) -> Table {
        match self {
            Self::Split(high, low) => {
                Table::Halves { high: high.ptr().at(gpu, at), low: low.ptr().at(gpu, at) }
            }
            _ => Table::Compute(self.products().at(gpu, at)),
        }
    }

    /// Of moments: where they begin.
    pub(crate) fn moments(&self) -> DevicePtr<Moment> {
        match self {
            Self::F32(memory) => memory.ptr().cast(),
            Self::Bf16(memory) | Self::Split(memory, _) => memory.ptr().cast(),
        }
    }

    /// Of moments: where number `n` is.
    pub(crate) fn moments_from(&self, gpu: &Gpu, n: usize) -> DevicePtr<Moment> {
        match self {
            Self::F32(memory) => memory.ptr().at(gpu, n).cast(),
            Self::Bf16(memory) | Self::Split(memory, _) => memory.ptr().at(gpu, n).cast(),
        }
    }

    /// How many bytes they take.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::F32(memory) => memory.bytes(),
            Self::Bf16(memory) => memory.bytes(),
            Self::Split(high, low) => high.bytes() + low.bytes(),
        }
    }

    /// Overwrites what begins at element `offset`.
    pub(crate) fn write(&self, offset: usize, values: &[f32]) -> Result<()> {
        fn each<T: Send>(values: &[f32], which: fn(f32) -> T) -> Vec<T> {
            values.par_iter().map(|v| which(*v)).collect()
        }
        match self {
            Self::F32(memory) => memory.write(offset, values),
            Self::Bf16(memory) => memory.write(offset, &each(values, bf16::from_f32)),
            Self::Split(high, low) => {
                high.write(offset, &each(values, |v| bf16::from_bits(split(v).0)))?;
                low.write(offset, &each(values, |v| split(v).1 as i16))
            }
        }
    }

    /// The `len` numbers from element `offset` on, in `values`, which has room for them, for gigabytes of them: they come
    /// through page-locked memory, the host converting one part while the GPU sends the next.
    pub(crate) fn read(
        &self,
        gpu: &Gpu,
        offset: usize,
        mut values: Vec<f32>,
        len: usize,
        staging: &mut [Pinned; 2],
    ) -> Result<Vec<f32>> {
        gpu.bind()?;
        let sources = match self {
            Self::F32(memory) => vec![memory.range(offset, len)?.cast::<u8>()],
            Self::Bf16(memory) => vec![memory.range(offset, len)?.cast()],
            Self::Split(high, low) => {
                vec![high.range(offset, len)?.cast(), low.range(offset, len)?.cast()]
            }
        };
        let size = if matches!(self, Self::F32(_)) { 4 } else { 2 };
        // Of halves, the lower ones lie behind all higher ones of the part.
        let part = staging[0].bytes() / 4;
        let event = || gpu.stream().record_event(None).map_err(|e| gpu.error(e.0));
        let mut sent: [Option<(CudaEvent, usize, usize)>; 2] = [None, None];
        for (i, first) in (0..len).step_by(part).map(Some).chain([None, None]).enumerate() {
            let slot = i % 2;
            if let Some((event, first, count)) = sent[slot].take() {
                event.synchronize().map_err(|e| gpu.error(e.0))?;
                self.convert(
                    &mut staging[slot],
                    part,
                    &mut values.spare_capacity_mut()[first..first + count],
                );
            }
            if let Some(first) = first {
                let count = part.min(len - first);
                for (n, source) in sources.iter().enumerate() {
                    let to = &mut staging[slot].as_mut_slice::<u8>()[n * part * size..][..count * size];
                    let from = source.at(gpu, first * size).address();
                    // SAFETY: the range was checked, and the part is not touched until the event has come.
                    unsafe { result::memcpy_dtoh_async(to, from, gpu.raw_stream()) }
                        .map_err(|e| gpu.error(e.0))?;
                }
                sent[slot] = Some((event()?, first, count));
            }
        }
        // SAFETY: the parts cover all of it, and each was written above.
        unsafe { values.set_len(len) };
        Ok(values)
    }

    /// Parallel: most of the time is the system's, handing out pages of memory.
    fn convert(&self, staging: &mut Pinned, part: usize, room: &mut [MaybeUninit<f32>]) {
        let count = room.len();
        let room = room.par_chunks_mut(CHUNK);
        match self {
            Self::F32(_) => {
                let source = &staging.as_mut_slice::<f32>()[..count];
                room.zip(source.par_chunks(CHUNK)).for_each(|(room, source)| {
                    room.iter_mut().zip(source).for_each(|(to, from)| {
                        to.write(*from);
                    });
                });
            }
            Self::Bf16(_) => {
                let source = &staging.as_mut_slice::<u16>()[..count];
                room.zip(source.par_chunks(CHUNK)).for_each(|(room, source)| {
                    room.iter_mut().zip(source).for_each(|(to, from)| {
                        to.write(joined(*from, 0));
                    });
                });
            }
            Self::Split(..) => {
                let (high, low) = staging.as_mut_slice::<u16>().split_at(part);
                let source = high[..count].par_chunks(CHUNK).zip(low[..count].par_chunks(CHUNK));
                room.zip(source).for_each(|(room, (high, low))| {
                    for ((to, high), low) in room.iter_mut().zip(high).zip(low) {
                        to.write(joined(*high, *low));
                    }
                });
            }
        }
    }
}
