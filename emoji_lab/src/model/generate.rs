//! Text from a model, token by token.

use candle_core::Tensor;

use super::constrained::follow_one;
use super::generate_batch::answer_text;
use super::stream::Stream;
use super::{Gemma3, GenerationConfig, KvCache, Model};
use crate::data::Message;
use crate::error::{Error, Result};
use crate::host;
use crate::ops::pool::on_pool;
use crate::ops::sample::{Rule, cpu};
use crate::ops::team::Team;

/// The model's answer to a conversation, without special tokens.
///
/// Ends at one of [`Model::stop_ids`], at `<end_of_turn>`, or after `max_new_tokens`; with a
/// [constraint](GenerationConfig::constraint) also where nothing can follow.
///
/// # Errors
/// [`Error::Setting`] for settings that cannot work, a prompt that leaves no room, or a constraint whose
/// words the tokenizer cannot spell in `max_new_tokens`;
/// [`Error::Model`] if the chat template refuses the messages.
pub fn generate(model: &Model, messages: &[Message], config: &GenerationConfig) -> Result<String> {
    let prompt = model.tokenizer.encode_chat(messages, true)?;
    answer_text(model, &follow_one(model, &prompt, config, &model.answer_ends()?)?)
}

/// The tokens that follow `prompt`, up to one of [`Model::stop_ids`], which is left out.
///
/// # Errors
/// As [`generate`]; also if the prompt is empty.
pub fn generate_ids(model: &Model, prompt: &[u32], config: &GenerationConfig) -> Result<Vec<u32>> {
    follow_one(model, prompt, config, &model.stop_ids()?)
}

/// Where tokens come from: each is read in turn, and followed by another.
pub(crate) trait Tokens {
    /// The next token.
    fn next(&mut self) -> Result<u32>;
}

/// Tokens up to `limit`, or to one of `stop`, which is left out.
fn collect(source: &mut dyn Tokens, limit: usize, stop: &[u32]) -> Result<Vec<u32>> {
    let mut tokens = vec![];
    while tokens.len() < limit {
        let token = source.next()?;
        if stop.contains(&token) {
            break;
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// The tokens of an answer that there is room for from the start.
pub(super) const FIRST_ROOM: usize = 32;

/// The model on the CPU.
struct CpuTokens<'a, 't, 's> {
    gemma: &'a Gemma3,
    team: &'t mut Team<'s>,
    reader: Reader<'a>,
    rule: Rule,
    /// Prompt and answer so far.
    tokens: Vec<u32>,
}

/// What reads a sequence.
enum Reader<'a> {
    Stream(Box<Stream<'a>>),
    /// For a model that is more than dense matrices.
    Tensors(KvCache),
}

impl Tokens for CpuTokens<'_, '_, '_> {
    fn next(&mut self) -> Result<u32> {
        let token = match &mut self.reader {
            Reader::Stream(stream) => {
                stream.read(self.team, &self.tokens[stream.len()..])?;
                if self.rule.is_likeliest() {
                    stream.likeliest(self.team)?
                } else {
                    let logits = stream.logits(self.team)?;
                    let logits = host::tensor(logits.to_vec(), logits.len())?;
                    cpu::next_token(&logits, &self.tokens, &self.rule)?
                }
            }
            Reader::Tensors(cache) => {
                cache.make_room(self.tokens.len() - cache.len())?;
                let unread = &self.tokens[cache.len()..];
                let logits: Tensor = on_pool(|| self.gemma.decode(unread, cache))?;
                cpu::next_token(&logits, &self.tokens, &self.rule)?
            }
        };
        self.tokens.push(token);
        Ok(token)
    }
}

impl Gemma3 {
    /// The tokens that follow `prompt`, up to one of `stop`, which is left out.
    ///
    /// With `config.do_sample`, seed and logits decide the draw, on every device alike.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that cannot work, an empty prompt, or one that leaves no room.
    pub fn generate(&self, prompt: &[u32], config: &GenerationConfig, stop: &[u32]) -> Result<Vec<u32>> {
        let limit = self.room_after(prompt, config)?;
        self.follow(prompt, limit, config.rule(), stop)
    }

    /// How many tokens may follow `prompt`.
    pub(super) fn room_after(&self, prompt: &[u32], config: &GenerationConfig) -> Result<usize> {
        config.validate()?;
        if let Some(constraint) = &config.constraint {
            let help = "only generate, generate_ids, generate_samples, compare and evaluate keep to it: call one of them";
            return Err(Error::setting("constraint", constraint, help));
        }
        let longest = self.config().max_position_embeddings;
        if prompt.is_empty() {
            return Err(Error::setting("prompt", "\"\"", "give at least one token to go on from"));
        }
        if prompt.len() >= longest {
            let help = format!("the model reads at most {longest} tokens, the answer included: shorten it");
            return Err(Error::setting("prompt", format!("{} tokens", prompt.len()), help));
        }
        Ok(config.max_new_tokens.min(longest - prompt.len()))
    }

    /// The `count` likeliest tokens after `prompt`, without a look at what they mean: no token stops
    /// it.
    ///
    /// # Errors
    /// If the prompt is empty or outside the vocabulary, or the device fails.
    pub fn greedy(&self, prompt: &[u32], count: usize) -> Result<Vec<u32>> {
        self.follow(prompt, count, Rule::GREEDY, &[])
    }

    pub(super) fn follow(&self, prompt: &[u32], limit: usize, rule: Rule, stop: &[u32]) -> Result<Vec<u32>> {
        let elsewhere = self.on_device.with(self, |generator| {
            generator.start(prompt, limit, &rule)?;
            collect(generator, limit, stop)
        })?;
        match elsewhere {
            Some(answer) => Ok(answer),
            None => self.follow_here(prompt, limit, rule, stop),
        }
    }
}

impl Gemma3 {
    /// [`Self::follow`] on the CPU.
    fn follow_here(&self, prompt: &[u32], limit: usize, rule: Rule, stop: &[u32]) -> Result<Vec<u32>> {
        let stored = self.on_device.on_host(self)?;
        let reader = match Stream::begin(self, &stored, prompt.len() + FIRST_ROOM)? {
            Some(stream) => Reader::Stream(Box::new(stream)),
            None => Reader::Tensors(KvCache::new(self.config(), prompt.len())?),
        };
        Team::with(|team| {
            let mut source = CpuTokens { gemma: self, team, reader, rule, tokens: prompt.to_vec() };
            collect(&mut source, limit, stop)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_longer_than_the_first_room_is_the_same() {
        let model = crate::model::load_model("embedded", &crate::Device::Cpu).unwrap();
        let prompt = model.tokenizer.encode("a day at the beach").unwrap();
        let count = 3 * FIRST_ROOM + 5;
        let mut cache = KvCache::new(model.gemma.config(), prompt.len() + count).unwrap();
        let mut tokens = prompt.clone();
        for _ in 0..count {
            let logits = model.gemma.decode(&tokens[cache.len()..], &mut cache).unwrap();
            tokens.push(cpu::next_token(&logits, &tokens, &Rule::GREEDY).unwrap());
        }
        assert_eq!(model.gemma.greedy(&prompt, count).unwrap(), tokens[prompt.len()..]);
    }

    #[test]
    fn what_a_model_brings_stops_it() {
        let mut model = crate::model::load_model("embedded", &crate::Device::Cpu).unwrap();
        let prompt = model.tokenizer.encode("a day at the beach").unwrap();
        let free = model.gemma.greedy(&prompt, 6).unwrap();
        let end = free.iter().position(|token| *token == free[3]).unwrap();
        for ids in [serde_json::json!(free[3]), serde_json::json!([free[3], 400])] {
            model.generation_config["eos_token_id"] = ids;
            assert_eq!(generate_ids(&model, &prompt, &GenerationConfig::greedy(6)).unwrap(), free[..end]);
        }
        model.generation_config["eos_token_id"] = serde_json::json!([]);
        assert_eq!(generate_ids(&model, &prompt, &GenerationConfig::greedy(6)).unwrap(), free);
        model.generation_config = serde_json::json!({"do_sample": true, "top_p": 0.5, "num_beams": 3});
        assert_eq!(model.stop_ids().unwrap(), model.tokenizer.stop_ids());
        let settings = model.default_generation_config().unwrap();
        assert_eq!((settings.do_sample, settings.top_p, settings.top_k), (true, 0.5, 50));
        model.generation_config["eos_token_id"] = serde_json::json!("<eos>");
        let said = generate_ids(&model, &prompt, &GenerationConfig::greedy(6)).unwrap_err().to_string();
        assert!(said.contains("eos_token_id is \"<eos>\""), "{said}");
    }

    /// Counts up.
    struct Count(u32);

    impl Tokens for Count {
        fn next(&mut self) -> Result<u32> {
            self.0 += 1;
            match self.0 {
                9 => Err(Error::training("9 was asked for", "")),
                n => Ok(n),
            }
        }
    }

    #[test]
    fn ends_at_the_limit_or_before_a_stop() {
        assert_eq!(collect(&mut Count(0), 4, &[]).unwrap(), [1, 2, 3, 4]);
        assert_eq!(collect(&mut Count(0), 8, &[5, 3]).unwrap(), [1, 2]);
        assert_eq!(collect(&mut Count(0), 8, &[9]).unwrap().len(), 8);
        assert!(collect(&mut Count(0), 0, &[]).unwrap().is_empty());
        assert!(collect(&mut Count(0), 9, &[]).is_err());
    }

    #[test]
    fn draws_repeat_with_the_seed_and_end_at_a_stop() {
        let model = crate::model::load_model("embedded", &crate::Device::Cpu).unwrap();
        let prompt = model.tokenizer.encode("a day at the beach").unwrap();
        let config = GenerationConfig { do_sample: true, max_new_tokens: 24, ..GenerationConfig::default() };
        let wild = GenerationConfig { temperature: 3.0, top_k: 0, top_p: 1.0, ..config.clone() };
        let ask = |config: &GenerationConfig| model.gemma.generate(&prompt, config, &[]).unwrap();
        let ours = ask(&wild);
        assert_eq!(ours.len(), 24);
        assert_eq!(ours, ask(&wild));
        assert_ne!(ours, ask(&GenerationConfig { seed: 43, ..wild.clone() }));
        let end = ours.iter().position(|token| *token == ours[9]).unwrap();
        assert_eq!(model.gemma.generate(&prompt, &wild, &ours[9..10]).unwrap(), ours[..end]);
        // One token to choose from is the likeliest.
        let greedy = model.gemma.greedy(&prompt, 24).unwrap();
        assert_eq!(ask(&GenerationConfig { top_k: 1, ..config.clone() }), greedy);
        assert_eq!(ask(&GenerationConfig { top_p: 1e-9, top_k: 0, ..config.clone() }), greedy);
        assert_eq!(ask(&GenerationConfig { temperature: 1e-30, ..config }), greedy);
    }
}
