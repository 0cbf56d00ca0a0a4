//! What a run trains, on disk and back: PEFT's adapter, or a whole model where there is no LoRA.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Tensor};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::write_into_dir;
use crate::lora::{Adapter, AdapterConfig, CONFIG_FILE, LoraConfig};
use crate::model::{EMBED_TOKENS, Gemma3Config, LM_HEAD, Tokenizer, TokenizerFiles, Weights, save_folder};

/// How the folders of a run hold what it trains, and what other programs find beside it there. It is the
/// same for every checkpoint of the run.
#[derive(Debug, Clone)]
pub(in crate::train) struct WeightsFormat {
    /// Of the model in training, which may have been untied for it.
    pub(in crate::train) config: Gemma3Config,
    /// The adapters; without any the whole model is trained.
    pub(in crate::train) lora: Option<LoraConfig>,
    /// The base model's name.
    pub(in crate::train) base: String,
    pub(in crate::train) tokenizer: SharedTokenizer,
    pub(in crate::train) generation_config: Value,
}

/// A tokenizer whose files are made once for all folders of a run. Clones share them.
#[derive(Clone)]
pub(in crate::train) struct SharedTokenizer {
    tokenizer: Tokenizer,
    files: Arc<Mutex<Option<TokenizerFiles>>>,
}

impl SharedTokenizer {
    pub(in crate::train) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, files: Arc::default() }
    }

    /// Makes the files, if they are not there yet.
    pub(in crate::train) fn make(&self) -> Result<()> {
        self.with_files(|_| Ok(()))
    }

    /// Writes the files into the folder `dir`, one by one.
    fn write(&self, dir: &Path) -> Result<()> {
        self.with_files(|files| files.write(dir))
    }

    fn with_files(&self, f: impl FnOnce(&TokenizerFiles) -> Result<()>) -> Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        match &*files {
            Some(files) => f(files),
            None => f(files.insert(self.tokenizer.files()?)),
        }
    }
}

impl fmt::Debug for SharedTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tokenizer.fmt(f)
    }
}

impl WeightsFormat {
    /// Writes the parameters `weights` into the folder `dir`, and the tokenizer; what else is in it stays.
    pub(in crate::train) fn save(&self, dir: &Path, weights: &BTreeMap<String, Tensor>) -> Result<()> {
        match &self.lora {
            Some(lora) => {
                let adapter = self.adapter(lora, weights.clone())?;
                write_into_dir(dir, CONFIG_FILE, |stage| {
                    // Beside the tensors, which wait for the disk.
                    let (tensors, tokenizer) =
                        rayon::join(|| adapter.write_files(stage), || self.tokenizer.write(stage));
                    tensors.and(tokenizer)
                })
            }
            None => save_folder(
                dir,
                &self.config,
                weights,
                |stage| self.tokenizer.write(stage),
                &self.generation_config,
                DType::F32,
            ),
        }
    }

    /// Reads the parameters in the folder `dir` back. An adapter with another scale, which means something
    /// else with the same numbers, is refused.
    pub(in crate::train) fn load(&self, dir: &Path) -> Result<BTreeMap<String, Tensor>> {
        let mut weights = match &self.lora {
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
                adapter.tensors
            }
            None => Weights::from_folder(dir, &self.config)?.tensors,
        };
        if self.config.tie_word_embeddings {
            weights.remove(LM_HEAD);
        }
        Ok(weights)
    }

    /// The adapter with these parameters, as PEFT has it.
    pub(super) fn adapter(
        &self,
        lora: &LoraConfig,
        mut weights: BTreeMap<String, Tensor>,
    ) -> Result<Adapter> {
        let tied = self.config.tie_word_embeddings;
        if tied && let Some(embedding) = weights.get(EMBED_TOKENS) {
            // PEFT writes the shared tensor under both names.
            let embedding = embedding.clone();
            weights.insert(LM_HEAD.to_string(), embedding);
        }
        Adapter::new(AdapterConfig::new(lora, Some(&self.base), tied), weights)
    }
}
