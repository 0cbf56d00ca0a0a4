//! The trainer's parameters on disk and back: PEFT adapters, or whole models without LoRA, and the
//! optimizer's moments.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use serde::de::DeserializeOwned;

use super::layout::Buffer;
use super::trainer::SftTrainer;
use super::training_state::TrainingState;
use crate::error::{Error, Result};
use crate::lora::{Adapter, AdapterConfig};
use crate::model::{EMBED_TOKENS, LM_HEAD, Weights};

/// AdamW's moments, by PyTorch's names.
const MOMENTS: [(&str, Buffer); 2] = [("exp_avg", Buffer::ExpAvg), ("exp_avg_sq", Buffer::ExpAvgSq)];

impl SftTrainer {
    /// The trained adapter as it stands; `None` without LoRA.
    ///
    /// # Errors
    /// [`Error::Training`](crate::Error::Training) if an error has left the parameters between two steps.
    pub fn adapter(&self) -> Result<Option<Adapter>> {
        if self.off {
            return Err(super::resume::off());
        }
        let Some(lora) = &self.lora else { return Ok(None) };
        let mut tensors = BTreeMap::new();
        for slot in self.finetune.slots() {
            tensors.insert(slot.name.clone(), self.finetune.value(slot)?);
        }
        let tied = self.finetune.config().tie_word_embeddings;
        if tied && let Some(embedding) = tensors.get(EMBED_TOKENS) {
            // PEFT writes the shared tensor under both names.
            let embedding = embedding.clone();
            tensors.insert(LM_HEAD.to_string(), embedding);
        }
        let config = AdapterConfig::new(lora, Some(&self.base.origin), tied);
        Ok(Some(Adapter::new(config, tensors)?))
    }

    /// The parameters in the folder `dir`, to be given to [`put_weights`](Self::put_weights). An adapter
    /// with another scale, which means something else with the same numbers, is refused.
    pub(super) fn read_weights(&self, dir: &Path) -> Result<BTreeMap<String, Tensor>> {
        match &self.lora {
            Some(lora) => {
                let adapter = Adapter::load(dir)?;
                let (there, here) =
                    (adapter.config.scaling(), AdapterConfig::new(lora, None, false).scaling());
                if there != here {
                    return Err(Error::training(
                        format!(
                            "{}: its adapter has the scale {there}, this run's has {here}",
                            dir.display()
                        ),
                        "Its files are not those that this run wrote: take another checkpoint",
                    ));
                }
                Ok(adapter.tensors)
            }
            None => Ok(Weights::from_folder(dir, self.finetune.config())?.tensors),
        }
    }

    pub(super) fn put_weights(&mut self, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        self.finetune.load(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))
    }

    pub(super) fn optimizer_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        for slot in self.finetune.slots() {
            for (name, buffer) in MOMENTS {
                tensors.insert(format!("{name}.{}", slot.name), self.finetune.peek(buffer, slot)?);
            }
        }
        Ok(tensors)
    }

    pub(super) fn load_optimizer_tensors<P: DeserializeOwned>(
        &mut self,
        saved: &mut TrainingState<P>,
    ) -> Result<()> {
        for slot in self.finetune.slots().to_vec() {
            for (name, buffer) in MOMENTS {
                let tensor = saved.take(&format!("{name}.{}", slot.name), &slot.dims)?;
                self.finetune.write(buffer, &slot, &tensor)?;
            }
        }
        Ok(())
    }
}
