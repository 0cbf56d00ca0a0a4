//! Text from a model for many prompts at once.

use super::side_by_side::Asked;
use super::{Gemma3, GenerationConfig, Model};
use crate::data::Message;
use crate::error::{Error, Result};

/// The model's answers to many conversations, in their order: what [`generate`](super::generate)
/// gives for each of them, sooner.
///
/// Up to 64 answers grow side by side, and each step reads the model's weights once for all of them.
/// Prompts may be of different lengths; an answer that is finished makes room for the next prompt.
///
/// On the CPU, answers are those of one stream, token for token: a sequence's logits are the same bits
/// alone and among others, and with `do_sample` each conversation draws as it would alone with
/// `config.seed`. So the same conversation twice is the same answer twice.
///
/// On a GPU a conversation's answer does not depend on what is asked beside it either, and is the same in
/// every run: products are always of the same number of rows. But a product of many rows adds up in
/// another order than one of a single row, which [`generate`](super::generate) asks for. In f32 the logits
/// differ in the last bits, and in bf16 by some 2⁻⁸ of their size, so that where two tokens are nearly
/// equally likely the answer may go on differently from there. Draws take the same noise for the same
/// seed, place and token.
///
/// ```
/// use emoji_lab::prelude::*;
/// let model = load_model("embedded", &Device::Cpu)?;
/// let task = Task::emoji();
/// let prompts = [task.prompt("a day at the beach"), task.prompt("pizza with my friends tonight")];
/// let answers = generate_batch(&model, &prompts, &GenerationConfig::greedy(32))?;
/// assert_eq!(answers[1], generate(&model, &prompts[1], &GenerationConfig::greedy(32))?);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// As [`generate`](super::generate), before anything is generated; a prompt that leaves no room is
/// named by its number, from 0.
pub fn generate_batch(
    model: &Model,
    conversations: &[Vec<Message>],
    config: &GenerationConfig,
) -> Result<Vec<String>> {
    let answers = super::constrained::answers(model, conversations, config)?;
    answers.iter().map(|answer| answer_text(model, answer)).collect()
}

/// The tokens that follow each of `prompts`, up to one of [`Model::stop_ids`], which is left out:
/// [`generate_ids`](super::generate_ids) for many, as [`generate_batch`] goes about it.
///
/// # Errors
/// As [`generate_batch`]; also if a prompt is empty.
pub fn generate_batch_ids(
    model: &Model,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
) -> Result<Vec<Vec<u32>>> {
    model.gemma.generate_batch(prompts, config, &model.stop_ids()?)
}

/// What an answer's tokens say.
pub(crate) fn answer_text(model: &Model, answer: &[u32]) -> Result<String> {
    Ok(model.tokenizer.decode(answer, true)?.trim().to_string())
}

impl Gemma3 {
    /// The tokens that follow each of `prompts`, up to one of `stop`, which is left out: what
    /// [`Self::generate`] gives for each, sooner (see [`generate_batch`]).
    ///
    /// # Errors
    /// As [`Self::generate`], before anything is generated, with the number of the prompt.
    pub fn generate_batch(
        &self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
        stop: &[u32],
    ) -> Result<Vec<Vec<u32>>> {
        let mut asked = Vec::with_capacity(prompts.len());
        for (source, prompt) in prompts.iter().enumerate() {
            let limit = self.room_after(prompt, config).map_err(|error| of_prompt(error, source))?;
            asked.push(Asked { source, prompt, limit, rule: config.rule() });
        }
        self.follow_all(&asked, stop, None)
    }
}

/// Says which of many prompts cannot be used.
pub(super) fn of_prompt(error: Error, number: usize) -> Error {
    match error {
        Error::Setting { name: "prompt", value, help } => {
            Error::setting("prompts", format!("{value} as prompt {number}"), help)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::side_by_side::{PROMPT_TOKENS, ROWS};
    use super::super::{KvCache, generate, generate_ids, load_model};
    use super::*;
    use crate::data::load_dataset;
    use crate::task::{EmojiFilter, Task};

    fn embedded() -> Model {
        load_model("embedded", &crate::Device::Cpu).unwrap()
    }

    /// Prompts of 1 to about 300 tokens, in no order of length: more of them than there are rows side
    /// by side, and more tokens than are taken in at once.
    fn prompts(model: &Model) -> Vec<Vec<u32>> {
        let rows = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap().examples;
        let text: String = rows.iter().map(|row| format!("{} {} ", row.text, row.answer)).collect();
        let tokens = model.tokenizer.encode(&text).unwrap();
        let lengths = (0..90).map(|i| 1 + i * 67 % 293);
        let prompts: Vec<Vec<u32>> =
            lengths.enumerate().map(|(i, length)| tokens[i * 31..][..length].to_vec()).collect();
        assert!(prompts.len() > ROWS && prompts.iter().map(Vec::len).sum::<usize>() > PROMPT_TOKENS);
        prompts
    }

    fn one_by_one(model: &Model, config: &GenerationConfig, stop: &[u32]) -> Vec<Vec<u32>> {
        prompts(model).iter().map(|prompt| model.gemma.generate(prompt, config, stop).unwrap()).collect()
    }

    #[test]
    fn greedy_tokens_are_one_streams_past_the_window() {
        let model = embedded();
        let config = GenerationConfig::greedy(70);
        assert!(model.gemma.config().sliding_window < 70);
        let one = one_by_one(&model, &config, &[]);
        assert!(one.iter().all(|answer| answer.len() == 70));
        assert_eq!(model.gemma.generate_batch(&prompts(&model), &config, &[]).unwrap(), one);
    }

    #[test]
    fn draws_are_one_streams_and_answers_end_where_theirs_do() {
        let model = embedded();
        let config = GenerationConfig { do_sample: true, ..GenerationConfig::greedy(24) };
        let wild = GenerationConfig { temperature: 2.0, top_k: 0, repetition_penalty: 1.3, ..config.clone() };
        // Every twentieth token ends an answer.
        let stop: Vec<u32> = (0..2048).step_by(20).collect();
        for config in [GenerationConfig { seed: 7, ..config.clone() }, config, wild] {
            let one = one_by_one(&model, &config, &stop);
            let lengths: std::collections::HashSet<usize> = one.iter().map(Vec::len).collect();
            assert!(lengths.len() > 5, "{lengths:?}");
            assert_eq!(model.gemma.generate_batch(&prompts(&model), &config, &stop).unwrap(), one);
        }
    }

    #[test]
    fn logits_are_one_streams_bit_for_bit() {
        let model = embedded();
        let prompts = prompts(&model);
        let caches = || prompts.iter().map(|_| KvCache::new(model.gemma.config(), 300).unwrap());
        let mut together: Vec<KvCache> = caches().collect();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let logits = model.gemma.decode_rows(&rows, &mut together).unwrap().to_vec2::<f32>().unwrap();
        let next: Vec<[u32; 1]> = (0..rows.len() as u32).map(|i| [7 + 20 * i]).collect();
        let rows: Vec<&[u32]> = next.iter().map(|token| token.as_slice()).collect();
        let later = model.gemma.decode_rows(&rows, &mut together).unwrap().to_vec2::<f32>().unwrap();
        for (i, mut cache) in caches().enumerate() {
            let one = model.gemma.decode(&prompts[i], &mut cache).unwrap().to_vec1::<f32>().unwrap();
            assert!(one == logits[i], "prompt {i}");
            let one = model.gemma.decode(rows[i], &mut cache).unwrap().to_vec1::<f32>().unwrap();
            assert!(one == later[i], "after prompt {i}");
        }
    }

    #[test]
    fn what_prompts_begin_with_is_read_once_and_changes_nothing() {
        let model = embedded();
        let start = prompts(&model)[4].clone();
        assert!(start.len() > model.gemma.config().sliding_window);
        let config = GenerationConfig { do_sample: true, ..GenerationConfig::greedy(20) };
        let asked: Vec<Vec<u32>> =
            (0..70).map(|i| [&start[..], &vec![30 + i; 1 + i as usize % 7]].concat()).collect();
        let answers = model.gemma.generate_batch(&asked, &config, &[]).unwrap();
        for (prompt, answer) in asked.iter().zip(&answers) {
            assert_eq!(*answer, model.gemma.generate(prompt, &config, &[]).unwrap());
        }
    }

    #[test]
    fn conversations_are_answered_as_one_by_one() {
        let model = embedded();
        let config = GenerationConfig::greedy(32);
        let asked: Vec<_> = ["pizza", "a day at the beach with my dog", "pizza"]
            .map(|text| Task::emoji().prompt(text))
            .into();
        let answers = generate_batch(&model, &asked, &config).unwrap();
        for (asked, answer) in asked.iter().zip(&answers) {
            assert_eq!(*answer, generate(&model, asked, &config).unwrap());
        }
        let ids = vec![model.tokenizer.encode_chat(&asked[1], true).unwrap()];
        let one = generate_ids(&model, &ids[0], &config).unwrap();
        assert_eq!(generate_batch_ids(&model, &ids, &config).unwrap(), [one]);
        assert!(generate_batch(&model, &[], &config).unwrap().is_empty());
    }

    #[test]
    fn the_prompt_that_cannot_be_used_is_named() {
        let model = embedded();
        let ask = |prompts: &[Vec<u32>]| {
            model.gemma.generate_batch(prompts, &GenerationConfig::greedy(4), &[]).unwrap_err().to_string()
        };
        let said = ask(&[vec![2], vec![]]);
        assert!(said.contains("setting prompts = \"\" as prompt 1"), "{said}");
        let longest = model.gemma.config().max_position_embeddings;
        let said = ask(&[vec![2], vec![3], vec![2; longest]]);
        assert!(
            said.contains(&format!("{longest} tokens as prompt 2")) && said.contains("shorten"),
            "{said}"
        );
        // The last place is there for an answer of one token.
        let full = vec![vec![2; longest - 1], vec![2; 5]];
        let answers = model.gemma.generate_batch(&full, &GenerationConfig::greedy(4), &[]).unwrap();
        assert_eq!((answers[0].len(), answers[1].len()), (1, 4));
        let none = GenerationConfig::greedy(0);
        let said = model.gemma.generate_batch(&full, &none, &[]).unwrap_err().to_string();
        assert!(said.contains("max_new_tokens"), "{said}");
        assert!(model.gemma.generate_batch(&[vec![4_000_000]], &GenerationConfig::greedy(4), &[]).is_err());
        assert!(model.gemma.decode_rows(&[&[2]], &mut []).is_err());
    }
}
