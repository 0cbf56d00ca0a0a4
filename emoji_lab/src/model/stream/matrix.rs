//! A weight of the model as a stream reads it.

use candle_core::Tensor;

use crate::error::Result;
use crate::host;
use crate::model::stored::StoredWeights;
use crate::ops::gemm::{self, Stored};
use crate::ops::lazy::LazyTensor;

/// `[outs, ins]`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Matrix<'a> {
    Dense(&'a Tensor),
    Stored(&'a Stored),
}

impl<'a> Matrix<'a> {
    pub(super) fn new(weight: &'a LazyTensor, stored: &'a StoredWeights) -> Self {
        stored.get(weight).map_or_else(|| Self::Dense(weight), Self::Stored)
    }

    /// Its blocks, if it is in blocks.
    pub(super) fn stored(self) -> Option<&'a Stored> {
        match self {
            Self::Dense(_) => None,
            Self::Stored(stored) => Some(stored),
        }
    }

    /// Calls `f` with it.
    pub(super) fn read<R>(self, f: impl FnOnce(gemm::Matrix<'_>) -> R) -> Result<R> {
        match self {
            Self::Dense(tensor) => Ok(host::read(tensor, |values| Ok(f(gemm::Matrix::Dense(values))))?),
            Self::Stored(stored) => Ok(f(gemm::Matrix::Stored(stored))),
        }
    }

    /// Calls `f` with two of them.
    pub(super) fn read_two<R>(two: [Self; 2], f: impl FnOnce([gemm::Matrix<'_>; 2]) -> R) -> Result<R> {
        two[0].read(|first| two[1].read(|second| f([first, second])))?
    }

    /// Calls `f` with three of them.
    pub(super) fn read_three<R>(three: [Self; 3], f: impl FnOnce([gemm::Matrix<'_>; 3]) -> R) -> Result<R> {
        three[0]
            .read(|first| Self::read_two([three[1], three[2]], |[second, third]| f([first, second, third])))?
    }
}
