//! A model ready to use: weights on a device, tokenizer, and where it came from.

use std::fmt;
use std::path::Path;

use candle_core::DType;
use serde_json::Value;

use super::generation_json::{not_computed, settings_of, stop_tokens};
use super::pretrained::open_files;
use super::{Gemma3, GenerationConfig, Tokenizer, save_pretrained_folder};
use crate::device::Device;
use crate::display::{plain, say, thousands};
use crate::error::Result;

/// A Gemma 3 with its tokenizer. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// The network.
    pub gemma: Gemma3,
    /// Its tokenizer, with the chat template.
    pub tokenizer: Tokenizer,
    /// `generation_config.json`, or Gemma's where there is none. Its `eos_token_id` is what
    /// generation stops at; [`Model::default_generation_config`] gives the rest as settings.
    pub generation_config: Value,
    /// Where it came from, as the caller named it.
    pub origin: String,
}

/// Loads the model that `source` names: a Hub id (`google/gemma-3-270m-it`), a transformers
/// folder, a `.gguf` file, or `"embedded"`, the small one that comes with the crate.
///
/// # Errors
/// [`Error::Model`](crate::Error::Model) if `source` is none of the four, or what it names is incomplete, damaged or not
/// a Gemma 3; [`Error::Hub`](crate::Error::Hub) if it cannot be downloaded.
pub fn load_model(source: &str, device: &Device) -> Result<Model> {
    let files = open_files(source)?;
    let gemma = Gemma3::new(&files.config, &files.weights, device)?;
    gemma.prepare_device()?;
    Ok(Model {
        gemma,
        tokenizer: files.tokenizer,
        generation_config: files.generation_config,
        origin: files.origin,
    })
}

impl Model {
    /// Whether this is the small model that comes with the crate.
    pub fn is_embedded(&self) -> bool {
        self.origin == "embedded"
    }

    /// The tokens at which generation stops: `eos_token_id` of [`Model::generation_config`], or what
    /// the tokenizer ends an answer with where that says nothing.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) if `eos_token_id` is neither a token id nor a list of them.
    pub fn stop_ids(&self) -> Result<Vec<u32>> {
        match self.generation_config.as_object() {
            Some(fields) if fields.get("eos_token_id").is_some_and(|ids| !ids.is_null()) => {
                stop_tokens(fields, &self.settings_origin())
            }
            _ => Ok(self.tokenizer.stop_ids().to_vec()),
        }
    }

    /// The tokens at which an answer in a chat ends. A base model's own settings do not know turns; in
    /// a chat the answer is over where its turn is.
    pub(super) fn answer_ends(&self) -> Result<Vec<u32>> {
        let mut ends = self.stop_ids()?;
        ends.extend(self.tokenizer.end_of_turn());
        Ok(ends)
    }

    /// The settings that the model's own `generation_config.json` asks for, as `model.generate()`
    /// uses them in transformers: `do_sample`, `temperature`, `top_k`, `top_p`,
    /// `repetition_penalty` and `max_new_tokens`.
    ///
    /// What it does not say is as in transformers, except for `max_new_tokens` and `seed`, which are
    /// as in [`GenerationConfig::default`]. Settings that are not computed here are named in a line.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) that names the field of a wrong type.
    pub fn default_generation_config(&self) -> Result<GenerationConfig> {
        let Some(fields) = self.generation_config.as_object() else {
            return Ok(GenerationConfig::default());
        };
        let settings = settings_of(fields, &self.settings_origin())?;
        let left = not_computed(fields);
        if !left.is_empty() {
            say(format!("{}: not used here: {}", self.settings_origin(), left.join(", ")));
        }
        Ok(settings)
    }

    fn settings_origin(&self) -> String {
        format!("{}, generation_config.json", self.origin)
    }

    /// How many numbers the model holds, a tied head counted once.
    pub fn num_parameters(&self) -> usize {
        super::parameters::tensor_shapes(self.gemma.config())
            .iter()
            .map(|(_, dims)| dims.iter().product::<usize>())
            .sum()
    }

    /// Writes a folder that [`load_model`] and transformers' `from_pretrained` read, in f32; what else
    /// is in `dir` stays.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if it cannot be written; `dir` is as it was then.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_as(dir, DType::F32)
    }

    /// [`save_pretrained`](Self::save_pretrained) with weights of `dtype`: F32, or BF16, which is half
    /// as large.
    ///
    /// # Errors
    /// [`Error::Setting`](crate::Error::Setting) for another dtype, else as there.
    pub fn save_pretrained_as(&self, dir: impl AsRef<Path>, dtype: DType) -> Result<()> {
        let weights = self.gemma.named_weights()?;
        save_pretrained_folder(
            dir.as_ref(),
            self.gemma.config(),
            &weights.tensors,
            &self.tokenizer,
            &self.generation_config,
            dtype,
        )
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = self.gemma.config();
        writeln!(f, "Model: {}", plain(&self.origin))?;
        writeln!(f, "Device: {}", self.gemma.device())?;
        writeln!(f, "DType: {}", self.gemma.device().dtype().as_str())?;
        write!(
            f,
            "Parameters: {} in {} layers, vocabulary {}",
            thousands(self.num_parameters() as u64),
            c.num_hidden_layers,
            thousands(c.vocab_size as u64)
        )
    }
}

impl Model {
    /// Shows the model's facts in a notebook cell; the Rust kernel calls this.
    pub fn evcxr_display(&self) {
        say(self);
    }
}
