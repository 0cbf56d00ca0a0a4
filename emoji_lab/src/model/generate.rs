//! Text from a model, token by token.

use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::utils::apply_repeat_penalty;

use super::{Gemma3, KvCache, Model};
use crate::data::Message;
use crate::error::{Error, Result};
use crate::ops::pool::on_pool;

/// How text is generated. Names are transformers'.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    /// The most tokens to generate.
    pub max_new_tokens: usize,
    /// Whether to draw from the model's distribution; off takes the likeliest token each time.
    pub do_sample: bool,
    /// Divides the logits when sampling: below 1 safer, above 1 wilder.
    pub temperature: f64,
    /// Draw from this many likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Draw from the fewest likeliest tokens whose probabilities reach this sum; 1 for all.
    pub top_p: f64,
    /// Divides the logits of tokens that were there before (Keskar et al. 2019); 1 for none.
    pub repetition_penalty: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            do_sample: false,
            temperature: 1.0,
            top_k: 64,
            top_p: 0.95,
            repetition_penalty: 1.0,
            seed: 42,
        }
    }
}

impl GenerationConfig {
    /// The likeliest token each time.
    #[must_use]
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// # Errors
    /// [`Error::Setting`] that names the setting which cannot work.
    pub fn validate(&self) -> Result<()> {
        if self.max_new_tokens == 0 {
            return Err(Error::setting("max_new_tokens", 0, "use 1 or more"));
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(Error::setting(
                "temperature",
                self.temperature,
                "use a number above 0, or do_sample: false for the likeliest token",
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::setting("top_p", self.top_p, "use a share above 0, up to 1 for all tokens"));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return Err(Error::setting(
                "repetition_penalty",
                self.repetition_penalty,
                "use a number above 0; 1 for none, 1.1 is usual",
            ));
        }
        Ok(())
    }

    fn sampling(&self) -> Sampling {
        let temperature = self.temperature;
        match (self.do_sample, self.top_k, self.top_p < 1.0) {
            (false, ..) => Sampling::ArgMax,
            (true, 0, false) => Sampling::All { temperature },
            (true, 0, true) => Sampling::TopP { p: self.top_p, temperature },
            (true, k, false) => Sampling::TopK { k, temperature },
            (true, k, true) => Sampling::TopKThenTopP { k, p: self.top_p, temperature },
        }
    }
}

/// The model's answer to a conversation, without special tokens.
///
/// Ends at `<end_of_turn>`, `<eos>`, or after `max_new_tokens`.
///
/// # Errors
/// [`Error::Setting`] for settings that cannot work or a prompt that leaves no room,
/// [`Error::Model`] if the chat template refuses the messages.
pub fn generate(model: &Model, messages: &[Message], config: &GenerationConfig) -> Result<String> {
    let prompt = model.tokenizer.encode_chat(messages, true)?;
    let answer = generate_ids(model, &prompt, config)?;
    Ok(model.tokenizer.decode(&answer, true)?.trim().to_string())
}

/// The tokens that follow `prompt`, the stop token left out.
///
/// # Errors
/// As [`generate`]; also if the prompt is empty.
pub fn generate_ids(model: &Model, prompt: &[u32], config: &GenerationConfig) -> Result<Vec<u32>> {
    config.validate()?;
    let gemma = &model.gemma;
    let limit = gemma.config().max_position_embeddings;
    if prompt.is_empty() {
        return Err(Error::setting("prompt", "\"\"", "give at least one token to go on from"));
    }
    if prompt.len() >= limit {
        let help = format!("the model reads at most {limit} tokens, the answer included: shorten it");
        return Err(Error::setting("prompt", format!("{} tokens", prompt.len()), help));
    }
    let room = (prompt.len() + config.max_new_tokens).min(limit);
    let is_stop = |token: u32| model.tokenizer.stop_ids().contains(&token);
    #[cfg(feature = "cuda")]
    if let crate::device::Device::Cuda(gpu) = gemma.device() {
        return gemma.on_card.with(gpu, gemma, |card| on_card(card, prompt, room, config, &is_stop));
    }
    let mut cache = KvCache::new(gemma.config(), room)?;
    let mut sampler = LogitsProcessor::from_sampling(config.seed, config.sampling());
    let mut tokens = prompt.to_vec();
    let mut logits = on_pool(|| gemma.decode(prompt, &mut cache))?;
    while tokens.len() < room {
        if config.repetition_penalty != 1.0 {
            logits = apply_repeat_penalty(&logits, config.repetition_penalty as f32, &tokens)?;
        }
        let next = sampler.sample(&logits)?;
        if is_stop(next) {
            break;
        }
        tokens.push(next);
        if tokens.len() < room {
            logits = on_pool(|| gemma.decode(&[next], &mut cache))?;
        }
    }
    Ok(tokens.split_off(prompt.len()))
}

/// [`generate_ids`] on a GPU. The likeliest token is found there, and the host only looks on; for a
/// draw, or a penalty, logits come over, so that the CPU's and the GPU's draws are the same.
#[cfg(feature = "cuda")]
fn on_card(
    card: &mut crate::cuda::Generator,
    prompt: &[u32],
    room: usize,
    config: &GenerationConfig,
    is_stop: &dyn Fn(u32) -> bool,
) -> Result<Vec<u32>> {
    if !config.do_sample && config.repetition_penalty == 1.0 {
        return card.greedy(prompt, room - prompt.len(), is_stop);
    }
    let mut sampler = LogitsProcessor::from_sampling(config.seed, config.sampling());
    let mut tokens = prompt.to_vec();
    card.start(prompt, room, 0)?;
    loop {
        let values = card.logits()?;
        let len = values.len();
        let mut logits = candle_core::Tensor::from_vec(values, len, &candle_core::Device::Cpu)?;
        if config.repetition_penalty != 1.0 {
            logits = apply_repeat_penalty(&logits, config.repetition_penalty as f32, &tokens)?;
        }
        let next = sampler.sample(&logits)?;
        if is_stop(next) {
            break;
        }
        tokens.push(next);
        if tokens.len() >= room {
            break;
        }
        card.read(next, tokens.len() - 1)?;
    }
    Ok(tokens.split_off(prompt.len()))
}

impl Gemma3 {
    /// The `count` likeliest tokens after `prompt`, without a look at what they mean: no token stops
    /// it.
    ///
    /// # Errors
    /// If the prompt is empty or outside the vocabulary, or the device fails.
    pub fn greedy(&self, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
        #[cfg(feature = "cuda")]
        if let crate::device::Device::Cuda(gpu) = self.device() {
            return self.on_card.with(gpu, self, |card| card.greedy(prompt, count, &|_| false));
        }
        let mut cache = KvCache::new(self.config(), prompt.len() + count)?;
        let mut sampler = LogitsProcessor::from_sampling(0, Sampling::ArgMax);
        let mut logits = on_pool(|| self.decode(prompt, &mut cache))?;
        let mut tokens = vec![];
        while tokens.len() < count {
            let next = sampler.sample(&logits)?;
            tokens.push(next);
            if tokens.len() < count {
                logits = on_pool(|| self.decode(&[next], &mut cache))?;
            }
        }
        Ok(tokens)
    }
}
