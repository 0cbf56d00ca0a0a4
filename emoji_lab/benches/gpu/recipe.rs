//! What is trained, and how: the part of the command line that a trainer is made of.

use emoji_lab::lora::{LoraConfig, TokenIndices};
use emoji_lab::model::Gemma3;
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune};
use emoji_lab::{DType, Result};

/// A way to train.
#[derive(Clone)]
pub struct Recipe {
    /// `google` (adapters and the whole embedding), `rows` (of it, those that occur), `adapters`, `whole`
    /// (every parameter, without adapters).
    pub trains: String,
    pub rank: usize,
    /// Rows per batch, and batches per step.
    pub rows: usize,
    pub accumulated: usize,
    pub moments: DType,
    /// Whether the frozen layers are in NF4.
    pub four_bit: bool,
}

impl Recipe {
    pub fn optimizer(&self) -> AdamW {
        AdamW { state_dtype: self.moments, ..AdamW::default() }
    }

    pub fn quant(&self) -> QuantConfig {
        if self.trains == "whole" || !self.four_bit { QuantConfig::none() } else { QuantConfig::default() }
    }

    /// `None` where every parameter is trained. `occurring` are the ids in the rows, where they are known.
    pub fn lora(&self, occurring: TokenIndices) -> Option<LoraConfig> {
        let all = LoraConfig { r: self.rank, ..LoraConfig::default() };
        match self.trains.as_str() {
            "whole" => None,
            "rows" => Some(LoraConfig { modules_to_save: vec![], trainable_token_indices: occurring, ..all }),
            "adapters" => Some(LoraConfig { modules_to_save: vec![], ..all }),
            _ => Some(all),
        }
    }

    pub fn start(&self, model: &Gemma3, batches: &[Batch]) -> Result<Finetune> {
        let mut ids: Vec<u32> = batches.iter().flat_map(|batch| batch.tokens.ids.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let lora = self.lora(TokenIndices::Ids(ids));
        let mut finetune = Finetune::new(model, &self.quant(), lora.as_ref(), self.optimizer(), 1.0, 42)?;
        if self.accumulated > 1 {
            finetune.reserve_sums()?;
        }
        Ok(finetune)
    }
}
