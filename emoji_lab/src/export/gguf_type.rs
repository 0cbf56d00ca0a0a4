//! What a GGUF's matrices can be stored as.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::model::gguf::Kind;

/// How [`export_gguf`](super::export_gguf) stores the matrices. Norms are F32 in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GgufType {
    /// 32 bits, nothing rounded. For comparisons: other programs then compute with our values.
    F32,
    /// 16 bits, the type that Gemma 3 is published in.
    Bf16,
    /// 16 bits with a finer step and a smaller range than bf16, up to 65,504.
    F16,
    /// 8 bits and a scale for each 32 values: half of bf16, and hardly another answer.
    #[default]
    Q8_0,
    /// 4 bits and a scale for each 32 values; the embedding, and a head of its own, in Q8_0.
    Q4_0,
}

impl GgufType {
    /// All of them, the largest file first.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q4_0];

    /// llama.cpp's name, as it stands in file names.
    pub fn as_str(self) -> &'static str {
        self.kind().name()
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::F32,
            Self::Bf16 => Kind::BF16,
            Self::F16 => Kind::F16,
            Self::Q8_0 => Kind::Q8_0,
            Self::Q4_0 => Kind::Q4_0,
        }
    }

    /// `general.file_type`: llama.cpp's `llama_ftype`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Bf16 => 32,
        }
    }
}

impl fmt::Display for GgufType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for GgufType {
    type Err = Error;

    /// llama.cpp's name, in any case: `Q8_0`, `bf16`.
    fn from_str(name: &str) -> Result<Self> {
        let same = |kind: &Self| kind.as_str().eq_ignore_ascii_case(name);
        let help = "use F32, BF16, F16, Q8_0 or Q4_0";
        Self::ALL.into_iter().find(same).ok_or_else(|| Error::setting("kind", name, help))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for kind in GgufType::ALL {
            assert_eq!(kind.as_str().to_lowercase().parse::<GgufType>().unwrap(), kind);
        }
        let said = "Q4_K_M".parse::<GgufType>().unwrap_err().to_string();
        assert!(said.contains("Q4_K_M") && said.contains("Q4_0"), "{said}");
    }
}
