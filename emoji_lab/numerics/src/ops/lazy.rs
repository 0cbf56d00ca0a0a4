//! A weight's tensor, made out of what its file has when it is first asked for.
//!
//! Of a model in four bits the f32 values are eight times as large as the file, and most of them are never asked
//! for: generation on the CPU reads blocks, training in NF4 packs the linear layers anew, and an embedding that is
//! trained is the optimizer's.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, OnceLock};

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::gemm::Stored;
use crate::host;

/// An f32 tensor on the CPU: one that is there, or one that stands as blocks of few bits or as bf16 in its file's
/// form until its values are asked for. As with [`std::sync::LazyLock`], a dereference makes them, and keeps them.
///
/// Cloning is cheap: both clones are of one tensor.
#[derive(Clone)]
pub struct LazyTensor(Kind);

#[derive(Clone)]
enum Kind {
    Dense(Tensor),
    Stored(Arc<InFile>),
}

struct InFile {
    stored: Stored,
    dims: [usize; 2],
    values: OnceLock<Tensor>,
}

impl LazyTensor {
    /// Values that are kept as a file stores them.
    pub fn stored_as(stored: Stored) -> Self {
        let dims = stored.dims().into();
        Self(Kind::Stored(Arc::new(InFile { stored, dims, values: OnceLock::new() })))
    }

    /// Its shape.
    pub fn dims(&self) -> &[usize] {
        match &self.0 {
            Kind::Dense(tensor) => tensor.dims(),
            Kind::Stored(file) => &file.dims,
        }
    }

    /// The shape of a matrix.
    ///
    /// # Errors
    /// If it has not two dimensions.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match &self.0 {
            Kind::Dense(tensor) => tensor.dims2(),
            Kind::Stored(file) => Ok(file.stored.dims()),
        }
    }

    /// How many values it has.
    pub fn elem_count(&self) -> usize {
        self.dims().iter().product()
    }

    /// What it is made of, if it is not plain values.
    pub fn stored(&self) -> Option<&Stored> {
        match &self.0 {
            Kind::Dense(_) => None,
            Kind::Stored(file) => Some(&file.stored),
        }
    }

    /// Its values, if they are there without being made.
    pub fn dense(&self) -> Option<&Tensor> {
        match &self.0 {
            Kind::Dense(tensor) => Some(tensor),
            Kind::Stored(file) => file.values.get(),
        }
    }

    /// Its values for a passing use: made anew if they are not there, and not kept.
    ///
    /// # Errors
    /// Only if candle cannot make a tensor.
    pub fn to_tensor(&self) -> Result<Tensor> {
        match (self.dense(), &self.0) {
            (Some(tensor), _) | (None, Kind::Dense(tensor)) => Ok(tensor.clone()),
            (None, Kind::Stored(file)) => host::tensor(file.stored.values(), file.dims.as_slice()),
        }
    }

    /// Whether `other` has the same shape and values.
    ///
    /// # Errors
    /// Only if candle fails.
    pub fn equals(&self, other: &Self) -> Result<bool> {
        if self.dims() != other.dims() {
            return Ok(false);
        }
        if let (Some(one), Some(two)) = (self.stored(), other.stored())
            && one.same_bytes(two)
        {
            return Ok(true);
        }
        host::read(&self.to_tensor()?, |one| {
            host::read(&other.to_tensor()?, |two| {
                let same = |(a, b): (&f32, &f32)| a == b || a.to_bits() == b.to_bits();
                Ok(one.par_iter().zip(two).with_min_len(1 << 16).all(same))
            })
        })
    }

    /// Hands out all values in order, in parts of an even number of them but for the last.
    ///
    /// # Errors
    /// If it is no contiguous f32 on the CPU.
    pub fn in_parts(&self, mut f: impl FnMut(&[f32])) -> Result<()> {
        match (self.dense(), self.stored()) {
            (None, Some(stored)) => stored.in_parts(f),
            _ => {
                let values = self.contiguous()?;
                host::read(&values, |values| {
                    f(values);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// The rows `ids` of a matrix, `[ids, columns]`; no others are made.
    ///
    /// # Errors
    /// If it is not a matrix, or has no such row.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let mut rows = vec![0.0; ids.len() * self.dims2()?.1];
        self.rows_into(ids, &mut rows)?;
        host::tensor(rows, (ids.len(), self.dims2()?.1))
    }

    /// [`rows`](Self::rows) in a place of the caller's.
    pub fn rows_into(&self, ids: &[u32], rows: &mut [f32]) -> Result<()> {
        let (count, width) = self.dims2()?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= count) {
            candle_core::bail!("row {id} of a matrix of {count}")
        }
        let places = rows.chunks_exact_mut(width.max(1)).zip(ids);
        match (self.dense(), self.stored()) {
            (Some(tensor), _) => host::read(tensor, |values| {
                places.for_each(|(row, id)| row.copy_from_slice(&values[*id as usize * width..][..width]));
                Ok(())
            })?,
            (None, stored) => places
                .zip(stored.into_iter().cycle())
                .for_each(|((row, id), stored)| stored.row(*id as usize, row)),
        }
        Ok(())
    }
}

impl Deref for LazyTensor {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match &self.0 {
            Kind::Dense(tensor) => tensor,
            // Made before the cell is asked: a thread of rayon's pool that makes them takes up other work while it waits
            // for its parts, and if that asked the same cell, it would wait for itself. Two that ask at once both make
            // them, and the first one's are kept.
            Kind::Stored(file) => file.values.get().unwrap_or_else(|| {
                let made = self.to_tensor().expect("as many values as the shape says, on the CPU");
                file.values.get_or_init(|| made)
            }),
        }
    }
}

impl From<Tensor> for LazyTensor {
    fn from(tensor: Tensor) -> Self {
        Self(Kind::Dense(tensor))
    }
}

impl fmt::Debug for LazyTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Dense(tensor) => write!(f, "Dense({:?})", tensor.dims()),
            Kind::Stored(file) => file.stored.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::random;

    fn bf16(seed: u64, dims: (usize, usize)) -> (Tensor, LazyTensor) {
        let half = random(seed, dims).unwrap().to_dtype(candle_core::DType::BF16).unwrap();
        let values = half.to_dtype(candle_core::DType::F32).unwrap();
        let stored = host::read(&values, |values| Ok(Stored::bf16(values, dims))).unwrap().unwrap();
        (values, LazyTensor::stored_as(stored))
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    }

    /// (One that waited for itself would wait for ever.)
    #[test]
    fn threads_of_the_pool_ask_for_the_same_values() {
        for round in 0..20 {
            let (values, lazy) = bf16(round, (700, 1000));
            let values = bits(&values);
            (0..16).into_par_iter().for_each(|_| assert!(bits(&lazy) == values));
            assert!(lazy.dense().is_some());
        }
    }

    #[test]
    fn values_are_made_when_they_are_asked_for_and_once() {
        let (values, lazy) = bf16(1, (70, 33));
        assert_eq!(
            (lazy.dims(), lazy.elem_count(), lazy.dense().is_none()),
            ([70, 33].as_slice(), 2310, true)
        );
        assert_eq!(bits(&lazy.to_tensor().unwrap()), bits(&values));
        assert!(lazy.dense().is_none() && lazy.stored().is_some());
        let clone = lazy.clone();
        assert_eq!(bits(&lazy), bits(&values));
        assert_eq!(clone.dense().unwrap().id(), lazy.id());
        assert_eq!(lazy.to_tensor().unwrap().id(), lazy.id());
    }

    #[test]
    fn rows_are_made_without_the_others() {
        let (values, lazy) = bf16(2, (9, 40));
        let ids = [8u32, 0, 8, 3];
        let wanted = values.index_select(&Tensor::new(&ids, values.device()).unwrap(), 0).unwrap();
        assert_eq!(bits(&lazy.rows(&ids).unwrap()), bits(&wanted));
        assert!(lazy.dense().is_none());
        assert_eq!(bits(&LazyTensor::from(values).rows(&ids).unwrap()), bits(&wanted));
        assert!(lazy.rows(&[9]).unwrap_err().to_string().contains("row 9 of a matrix of 9"));
        assert_eq!(lazy.rows(&[]).unwrap().dims(), [0, 40]);
    }
}
