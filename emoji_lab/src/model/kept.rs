//! Matrices kept in the form of a model's file.

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::Result;
use crate::host;
use crate::memory::Memory;
use crate::ops::gemm::Stored;
use crate::ops::lazy::LazyTensor;
use crate::quant::blocks::Kind;

/// A matrix of a file.
pub(super) struct Matrix<'a> {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) bytes: &'a [u8],
    /// Rows and columns.
    pub(super) dims: (usize, usize),
}

/// The matrices by their names, in copies of their bytes, for the file may be another one tomorrow. What a product
/// cannot read as it is stored becomes f32. `done` is told which bytes have been copied.
pub(super) fn keep(matrices: Vec<Matrix<'_>>, done: &dyn Fn(&[u8])) -> Result<Vec<(String, LazyTensor)>> {
    // Without memory for the copy every matrix becomes f32.
    let memory = copy(&matrices, done).ok().map(Arc::new);
    let mut at = 0;
    let keep = |Matrix { name, kind, bytes, dims }| {
        let range = at..at + bytes.len();
        at = range.end;
        let stored = memory.as_ref().and_then(|memory| Stored::new(kind, memory.clone(), range, dims));
        let weight = match stored {
            Some(stored) => LazyTensor::stored_as(stored),
            None => host::tensor(kind.dequantize(bytes), dims)?.into(),
        };
        Ok((name, weight))
    };
    matrices.into_iter().map(keep).collect()
}

/// The bytes of all, one behind the other.
fn copy(matrices: &[Matrix<'_>], done: &dyn Fn(&[u8])) -> std::io::Result<Memory> {
    const CHUNK: usize = 1 << 20;
    let mut memory = Memory::zeroed(matrices.iter().map(|matrix| matrix.bytes.len()).sum())?;
    let mut rest = &mut memory[..];
    for matrix in matrices {
        let (place, after) = rest.split_at_mut(matrix.bytes.len());
        place
            .par_chunks_mut(CHUNK)
            .zip(matrix.bytes.par_chunks(CHUNK))
            .for_each(|(to, from)| to.copy_from_slice(from));
        done(matrix.bytes);
        rest = after;
    }
    Ok(memory)
}
