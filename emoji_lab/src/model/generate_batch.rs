//! Text from a model for many prompts at once.

use std::collections::VecDeque;

use rayon::prelude::*;

use super::generate::FIRST_ROOM;
use super::{Gemma3, GenerationConfig, KvCache, Model};
use crate::data::Message;
use crate::error::{Error, Result};
use crate::ops::pool::on_pool;
use crate::ops::sample::{Rule, cpu};

/// Sequences that are generated side by side. More of them gain little: the products are then bound
/// by arithmetic, not by the reading of weights.
const ROWS: usize = 64;

/// Tokens that the prompts of the sequences side by side may have together, which bounds the memory
/// of their caches; a longer prompt goes alone.
const PROMPT_TOKENS: usize = 8192;

/// Tokens of prompts that are read in one step, if it is more than one prompt: what is computed of them
/// stays in a core's cache.
const NEW_TOKENS: usize = 256;

/// The model's answers to many conversations, in their order: what [`generate`](super::generate)
/// gives for each of them, sooner.
///
/// On the CPU up to 64 answers grow side by side, and each step reads the model's weights once for
/// all of them. Prompts may be of different lengths; what all begin with, as the system prompt, is
/// read once; an answer that is finished makes room for the next prompt. On a GPU the answers are for
/// now generated one after the other.
///
/// Answers are those of one stream, token for token: a sequence's logits are the same bits alone and
/// among others, and with `do_sample` each conversation draws as it would alone with `config.seed`. So
/// the same conversation twice is the same answer twice.
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

/// The tokens of each answer, without the one that ends it, where nothing constrains them.
pub(super) fn answers(
    model: &Model,
    conversations: &[Vec<Message>],
    config: &GenerationConfig,
) -> Result<Vec<Vec<u32>>> {
    let prompts: Vec<Vec<u32>> = conversations
        .iter()
        .map(|messages| model.tokenizer.encode_chat(messages, true))
        .collect::<Result<_>>()?;
    model.gemma.generate_batch(&prompts, config, &model.answer_ends()?)
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
        let mut waiting = VecDeque::with_capacity(prompts.len());
        for (number, prompt) in prompts.iter().enumerate() {
            let limit = self.room_after(prompt, config).map_err(|error| of_prompt(error, number))?;
            waiting.push_back(Asked { number, prompt, limit });
        }
        if self.device().is_cuda() {
            let one = |asked: &Asked<'_>| self.follow(asked.prompt, asked.limit, config.rule(), stop);
            return waiting.iter().map(one).collect();
        }
        let mut answers = vec![vec![]; prompts.len()];
        on_pool(|| {
            let mut batch = Batch::new(self, config.rule(), common_start(prompts))?;
            loop {
                batch.fill(&mut waiting)?;
                if batch.rows.is_empty() {
                    return Ok(answers);
                }
                batch.step()?;
                for (number, answer) in batch.take_finished(stop) {
                    answers[number] = answer;
                }
            }
        })
    }
}

/// Says which of many prompts cannot be used.
fn of_prompt(error: Error, number: usize) -> Error {
    match error {
        Error::Setting { name: "prompt", value, help } => {
            Error::setting("prompts", format!("{value} as prompt {number}"), help)
        }
        other => other,
    }
}

/// What all of several prompts begin with, less than the shortest of them: a prompt's last token is
/// read to know what follows.
fn common_start(prompts: &[Vec<u32>]) -> &[u32] {
    let Some((first, others)) = prompts.split_first().filter(|(_, others)| !others.is_empty()) else {
        return &[];
    };
    let same = |other: &Vec<u32>| first.iter().zip(other).take_while(|(a, b)| a == b).count();
    let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
    let common = others.iter().map(same).min().unwrap_or(0).min(shortest.saturating_sub(1));
    &first[..common]
}

/// A prompt that waits for its turn.
struct Asked<'a> {
    number: usize,
    prompt: &'a [u32],
    /// Tokens that its answer may have.
    limit: usize,
}

/// A sequence that grows.
struct Row<'a> {
    asked: Asked<'a>,
    /// Prompt and answer so far.
    tokens: Vec<u32>,
}

/// The sequences that grow side by side.
struct Batch<'a> {
    gemma: &'a Gemma3,
    rule: Rule,
    /// What every row begins with. A copy is the same as reading it again, for a token's numbers do not
    /// depend on what is computed beside it.
    start: KvCache,
    rows: Vec<Row<'a>>,
    /// One for each row.
    caches: Vec<KvCache>,
}

impl<'a> Batch<'a> {
    fn new(gemma: &'a Gemma3, rule: Rule, start: &[u32]) -> Result<Self> {
        let mut cache = KvCache::new(gemma.config(), start.len())?;
        if !start.is_empty() {
            gemma.decode(start, &mut cache)?;
        }
        Ok(Self { gemma, rule, start: cache, rows: vec![], caches: vec![] })
    }

    /// Takes in prompts, in their order, while there is room for the next.
    fn fill(&mut self, waiting: &mut VecDeque<Asked<'a>>) -> Result<()> {
        let mut prompt_tokens: usize = self.rows.iter().map(|row| row.asked.prompt.len()).sum();
        let mut new_tokens = 0;
        while self.rows.len() < ROWS {
            let fits = |asked: &Asked<'_>| {
                let (all, new) = (asked.prompt.len(), asked.prompt.len() - self.start.len());
                (self.rows.is_empty() || prompt_tokens + all <= PROMPT_TOKENS)
                    && (new_tokens == 0 || new_tokens + new <= NEW_TOKENS)
            };
            if !waiting.front().is_some_and(fits) {
                break;
            }
            let Some(asked) = waiting.pop_front() else { break };
            prompt_tokens += asked.prompt.len();
            new_tokens += asked.prompt.len() - self.start.len();
            let room = asked.prompt.len() + asked.limit.min(FIRST_ROOM);
            let mut cache = KvCache::new(self.gemma.config(), room)?;
            cache.begin_with(&self.start)?;
            self.caches.push(cache);
            self.rows.push(Row { tokens: asked.prompt.to_vec(), asked });
        }
        Ok(())
    }

    /// Adds a token to each row. A row that is new reads its prompt in the same pass in which the
    /// others read their last token.
    fn step(&mut self) -> Result<()> {
        let mut unread = Vec::with_capacity(self.rows.len());
        for (row, cache) in self.rows.iter().zip(&mut self.caches) {
            let new = &row.tokens[cache.len()..];
            cache.make_room(new.len())?;
            unread.push(new);
        }
        let logits = self.gemma.decode_rows(&unread, &mut self.caches)?;
        let rule = &self.rule;
        self.rows.par_iter_mut().enumerate().try_for_each(|(i, row)| {
            row.tokens.push(cpu::next_token(&logits.get(i)?, &row.tokens, rule)?);
            Ok(())
        })
    }

    /// Takes out the rows whose answer is over: numbers and answers.
    fn take_finished(&mut self, stop: &[u32]) -> Vec<(usize, Vec<u32>)> {
        let mut finished = vec![];
        for i in (0..self.rows.len()).rev() {
            let Row { asked, tokens } = &self.rows[i];
            let answer = &tokens[asked.prompt.len()..];
            let stopped = answer.last().is_some_and(|token| stop.contains(token));
            if stopped || answer.len() >= asked.limit {
                finished.push((asked.number, answer[..answer.len() - usize::from(stopped)].to_vec()));
                self.rows.swap_remove(i);
                self.caches.swap_remove(i);
            }
        }
        finished
    }
}

#[cfg(test)]
mod tests {
    use super::super::{generate, generate_ids, load_model};
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
        let ids = |prompts: &[&[u32]]| {
            let prompts: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
            common_start(&prompts).to_vec()
        };
        assert_eq!(ids(&[&[1, 2, 3, 4], &[1, 2, 9], &[1, 2, 3]]), [1, 2]);
        assert_eq!(ids(&[&[1, 2, 3], &[1, 2, 3]]), [1, 2]);
        assert_eq!(ids(&[&[1, 2, 3], &[1, 2]]), [1]);
        for none in [&[][..], &[&[1, 2][..]], &[&[1], &[1]], &[&[1, 2], &[2, 2]], &[&[], &[1]]] {
            assert!(ids(none).is_empty(), "{none:?}");
        }
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
