//! Quantisation of frozen weights.

pub use emoji_lab_numerics::quant::{Nf4Tensor, nf4};
pub(crate) use emoji_lab_numerics::quant::{blocks, quantize};

use crate::display::settings_view;
use crate::error::{Error, Result};

/// The 4-bit data type of a frozen weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QuantType {
    /// NormalFloat 4: sixteen levels placed where normally distributed weights are.
    #[default]
    Nf4,
}

/// What transformers calls `BitsAndBytesConfig`: how the frozen base is stored while adapters train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantConfig {
    /// Store the linear layers' frozen weights in 4 bits. Off: full precision, which trains a
    /// little better and needs eight times the memory for them.
    pub load_in_4bit: bool,
    /// Which 4-bit type.
    pub bnb_4bit_quant_type: QuantType,
    /// Weights that share one scale. bitsandbytes' default is 64.
    pub blocksize: usize,
}

impl Default for QuantConfig {
    fn default() -> Self {
        Self { load_in_4bit: true, bnb_4bit_quant_type: QuantType::Nf4, blocksize: nf4::BLOCK_SIZE }
    }
}

settings_view!(QuantConfig, "Frozen base", load_in_4bit, bnb_4bit_quant_type, blocksize);

impl QuantConfig {
    /// The base as it is, in full precision: LoRA instead of QLoRA.
    #[must_use]
    pub fn none() -> Self {
        Self { load_in_4bit: false, ..Self::default() }
    }

    /// The block size has a say in 4 bits only.
    ///
    /// # Errors
    /// [`Error::Setting`] for a block size that is not a power of two from 64 to 4096.
    pub fn validate(&self) -> Result<()> {
        if !self.load_in_4bit {
            return Ok(());
        }
        if self.blocksize.is_power_of_two() && (64..=4096).contains(&self.blocksize) {
            return Ok(());
        }
        Err(Error::setting(
            "blocksize",
            self.blocksize,
            "bitsandbytes has 64, 128, 256, 512, 1024, 2048 and 4096",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_size_is_looked_at_in_4_bits_only() {
        let odd = QuantConfig { blocksize: 100, ..QuantConfig::none() };
        odd.validate().unwrap();
        assert!(
            QuantConfig { load_in_4bit: true, ..odd }
                .validate()
                .unwrap_err()
                .to_string()
                .contains("blocksize = 100")
        );
    }
}
