//! A model ready to use: weights on a device, tokenizer, and where it came from.

use std::fmt;
use std::path::Path;

use candle_core::DType;
use serde_json::Value;

use super::{Gemma3, Tokenizer, open_pretrained, save_pretrained_folder};
use crate::device::Device;
use crate::display::{plain, thousands};
use crate::error::Result;

/// A Gemma 3 with its tokenizer. Cloning shares the weights.
#[derive(Debug, Clone)]
pub struct Model {
    /// The network.
    pub gemma: Gemma3,
    /// Its tokenizer, with the chat template.
    pub tokenizer: Tokenizer,
    /// `generation_config.json`, or Gemma's where there is none.
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
    let files = open_pretrained(source)?;
    let gemma = Gemma3::new(&files.config, &files.weights, device)?;
    gemma.prepare_device()?;
    Ok(Model {
        gemma,
        tokenizer: files.tokenizer,
        generation_config: files.generation_config,
        origin: files.origin,
    })
}

/// The fastest device there is: the first GPU if this build has CUDA and the driver shows one, else
/// the CPU.
///
/// # Errors
/// [`Error::Device`](crate::Error::Device) if there is a GPU, and it cannot be used.
pub fn best_device() -> Result<Device> {
    #[cfg(feature = "cuda")]
    if crate::cuda::Gpu::count() > 0 {
        return Device::cuda(0);
    }
    Ok(Device::Cpu)
}

impl Model {
    /// Whether this is the small model that comes with the crate.
    pub fn is_embedded(&self) -> bool {
        self.origin == "embedded"
    }

    /// How many numbers the model holds, a tied head counted once.
    pub fn num_parameters(&self) -> usize {
        super::names::tensor_shapes(self.gemma.config())
            .iter()
            .map(|(_, dims)| dims.iter().product::<usize>())
            .sum()
    }

    /// Writes a folder that [`load_model`] and transformers' `from_pretrained` read.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if it cannot be written; nothing half-written is left then.
    pub fn save_pretrained(&self, dir: impl AsRef<Path>) -> Result<()> {
        let weights = self.gemma.named_weights()?;
        let (config, dtype) = (self.gemma.config(), DType::F32);
        save_pretrained_folder(
            dir.as_ref(),
            config,
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
        crate::say!("{self}");
    }
}
