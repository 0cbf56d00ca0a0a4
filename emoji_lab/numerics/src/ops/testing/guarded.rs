//! A matrix on the GPU within a larger buffer of NaN bytes.

use crate::gpu::Gpu;
use crate::gpu::memory::Memory;
use crate::gpu::pointer::{Compute, DevicePtr, Element};

/// Bytes after the last row.
const BEHIND: usize = 512;

/// What a matrix may be made of.
pub(crate) trait Value: Element {
    fn kind(gpu: &Gpu) -> Kind;
}

impl Value for f32 {
    fn kind(_: &Gpu) -> Kind {
        Kind::F32
    }
}

impl Value for f64 {
    fn kind(_: &Gpu) -> Kind {
        Kind::F64
    }
}

impl Value for i32 {
    fn kind(_: &Gpu) -> Kind {
        Kind::I32
    }
}

impl Value for Compute {
    fn kind(gpu: &Gpu) -> Kind {
        if gpu.bf16() { Kind::Bf16 } else { Kind::F32 }
    }
}

/// What a matrix' values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    F32,
    Bf16,
    F64,
    I32,
}

impl Kind {
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 => 8,
        }
    }

    /// `values` as bytes.
    pub(crate) fn encode(self, values: &[f32]) -> Vec<u8> {
        let bytes = |v: &f32| match self {
            Self::F32 => v.to_ne_bytes().to_vec(),
            Self::Bf16 => half::bf16::from_f32(*v).to_bits().to_ne_bytes().to_vec(),
            Self::F64 => f64::from(*v).to_ne_bytes().to_vec(),
            Self::I32 => (*v as i32).to_ne_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }

    /// The values, and the first of them that still is poison.
    pub(crate) fn decode(self, bytes: &[u8]) -> (Vec<f32>, Option<usize>) {
        let value = |b: &[u8]| match self {
            Self::F32 => f32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            Self::Bf16 => half::bf16::from_bits(u16::from_ne_bytes([b[0], b[1]])).to_f32(),
            Self::F64 => f64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
            Self::I32 => i32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as f32,
        };
        let unwritten = bytes.chunks_exact(self.size()).position(|b| b.iter().all(|byte| *byte == 0xff));
        (bytes.chunks_exact(self.size()).map(value).collect(), unwritten)
    }
}

/// Rows of a matrix, NaN before, between and after them.
pub(crate) struct Guarded<T> {
    gpu: Gpu,
    memory: Memory<u8>,
    /// Its first value.
    first: DevicePtr<T>,
    kind: Kind,
    start: usize,
    rows: usize,
    width: usize,
    ld: usize,
}

impl<T: Value> Guarded<T> {
    pub(super) fn poisoned(gpu: &Gpu, start: usize, (rows, width, ld): (usize, usize, usize)) -> Self {
        let kind = T::kind(gpu);
        assert!(width <= ld, "rows of {width} that are {ld} apart");
        let bytes = start + rows * ld * kind.size() + BEHIND;
        let memory = Memory::<u8>::poisoned(gpu, bytes, "a test's matrix").unwrap();
        let first = memory.ptr().at(gpu, start).cast();
        Self { gpu: gpu.clone(), memory, first, kind, start, rows, width, ld }
    }

    pub(super) fn with_values(gpu: &Gpu, start: usize, values: &[f32], shape: (usize, usize, usize)) -> Self {
        let matrix = Self::poisoned(gpu, start, shape);
        let mut bytes = vec![0xffu8; matrix.memory.bytes()];
        for (row, values) in values.chunks(matrix.width.max(1)).enumerate() {
            let values = matrix.kind.encode(values);
            bytes[start + row * matrix.ld * matrix.kind.size()..][..values.len()].copy_from_slice(&values);
        }
        matrix.memory.write(0, &bytes).unwrap();
        matrix
    }

    /// Where it begins on the GPU.
    pub(crate) fn ptr(&self) -> DevicePtr<T> {
        self.first
    }

    /// Where column `column` of the first row is.
    pub(crate) fn column(&self, column: usize) -> DevicePtr<T> {
        self.first.at(&self.gpu, column)
    }

    /// Where row `row` is.
    pub(crate) fn row(&self, row: usize) -> DevicePtr<T> {
        self.first.at(&self.gpu, row * self.ld)
    }

    /// How far its rows are apart, as kernels take it.
    pub(crate) fn ld(&self) -> i32 {
        self.ld as i32
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Row and column of the value number `index`.
    pub(super) fn place(&self, index: usize) -> (usize, usize) {
        (index / self.width, index % self.width)
    }

    /// The rows' bytes, one after the other, and what was written outside of them.
    pub(super) fn read(&self) -> (Vec<u8>, Option<String>) {
        let mut all = vec![0u8; self.memory.bytes()];
        self.memory.read(0, &mut all).unwrap();
        let (width, ld) = (self.width * self.kind.size(), self.ld * self.kind.size());
        let mut inside = Vec::with_capacity(self.rows * width);
        let mut outside = None;
        for (at, byte) in all.into_iter().enumerate() {
            let (row, column) = match at.checked_sub(self.start) {
                Some(at) if ld > 0 && at / ld < self.rows => (at / ld, at % ld),
                _ => (0, width),
            };
            if column < width {
                inside.push(byte);
            } else if byte != 0xff && outside.is_none() {
                let to = at as i64 - self.start as i64;
                outside = Some(format!(
                    "byte {to} of {} rows of {width} bytes, {ld} apart (row {row}, byte {column})",
                    self.rows
                ));
            }
        }
        (inside, outside)
    }
}
