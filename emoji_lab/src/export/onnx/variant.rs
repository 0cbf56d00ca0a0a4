//! In which precisions an ONNX model is written.

use std::fmt;
use std::str::FromStr;

use super::weights::Form;
use crate::error::{Error, Result};

/// How [`export_onnx`](super::export_onnx) stores the matrices: Transformers.js's `dtype`. What flows between
/// them, the norms and the attention are f32 in all of them; in 16 bits Gemma 3's sums overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OnnxVariant {
    /// 32 bits, nothing rounded. For comparisons.
    Fp32,
    /// 8 bits and a scale for each 32 values of a row.
    Q8,
    /// 4 bits, a scale and a zero point for each 32 values; the embedding, and a head of its own, in 8 bits.
    Q4,
}

impl OnnxVariant {
    /// All of them, the largest file first.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Q8, Self::Q4];

    /// Transformers.js's name, as `dtype` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }

    /// The name of the graph's file in the folder `onnx`, as Transformers.js looks for it.
    pub(in crate::export) fn file(self) -> &'static str {
        match self {
            Self::Fp32 => "model.onnx",
            Self::Q8 => "model_quantized.onnx",
            Self::Q4 => "model_q4.onnx",
        }
    }

    /// The name of the file beside it that holds the weights.
    pub(in crate::export) fn data_file(self) -> String {
        format!("{}_data", self.file())
    }

    /// How the matrix of a linear layer is stored.
    pub(super) fn linear(self) -> Form {
        match self {
            // ONNX multiplies with a matrix of `[in, out]`.
            Self::Fp32 => Form::Transposed,
            Self::Q8 => Form::Blocks8,
            Self::Q4 => Form::Blocks4,
        }
    }

    /// How embedding and head are stored.
    pub(super) fn table(self) -> Form {
        match self {
            Self::Fp32 => Form::AsIs,
            Self::Q8 | Self::Q4 => Form::Blocks8,
        }
    }
}

impl fmt::Display for OnnxVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OnnxVariant {
    type Err = Error;

    /// Transformers.js's name: `fp32`, `q8` or `q4`.
    fn from_str(name: &str) -> Result<Self> {
        let same = |variant: &Self| variant.as_str().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(same).ok_or_else(|| Error::setting("variant", name, "use fp32, q8 or q4"))
    }
}
