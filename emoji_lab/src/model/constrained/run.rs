//! From prompts to answers.

use super::held::HeldTo;
use super::walk::Walk;
use crate::data::Message;
use crate::error::{Error, Result};
use crate::model::generate_batch::of_prompt;
use crate::model::side_by_side::Asked;
use crate::model::{GenerationConfig, Model, answer_text};
use crate::ops::sample::Rule;
use crate::rng::{Philox, streams};

/// The most answers to one prompt.
const MOST_SAMPLES: usize = 256;

/// `n` answers to the same conversation, drawn with seeds that follow from `config.seed`: the first is
/// the one that [`generate`](crate::model::generate) draws. Draws are made whatever `config.do_sample`
/// says, by its `temperature`, `top_k` and `top_p`.
///
/// The prompt is computed once, and the answers grow side by side, as those of
/// [`generate_batch`](crate::model::generate_batch) do: on a GPU the first is therefore the one that
/// [`generate`](crate::model::generate) draws up to what is said there of rounding.
///
/// ```
/// use emoji_lab::prelude::*;
/// let task = Task::emoji();
/// let config = GenerationConfig { constraint: task.constraint.clone(), ..GenerationConfig::greedy(32) };
/// let model = load_model("embedded", &Device::Cpu)?;
/// let answers = generate_samples(&model, &task.prompt("a day at the beach"), 4, &config)?;
/// assert_eq!(answers.len(), 4);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// As [`generate`](crate::model::generate); also for `n` of 0 or above 256.
pub fn generate_samples(
    model: &Model,
    messages: &[Message],
    n: usize,
    config: &GenerationConfig,
) -> Result<Vec<String>> {
    let drawn = samples(model, &[messages.to_vec()], n, config)?;
    drawn.iter().flatten().map(|answer| answer_text(model, answer)).collect()
}

/// The tokens of `n` answers to each conversation, as [`generate_samples`].
pub(crate) fn samples(
    model: &Model,
    conversations: &[Vec<Message>],
    n: usize,
    config: &GenerationConfig,
) -> Result<Vec<Vec<Vec<u32>>>> {
    if !(1..=MOST_SAMPLES).contains(&n) {
        return Err(Error::setting("samples", n, format!("use 1 to {MOST_SAMPLES}")));
    }
    let config = GenerationConfig { do_sample: true, ..config.clone() };
    let seeds = Philox::new(config.seed, streams::SAMPLES);
    let rules: Vec<Rule> = (0..n as u64)
        .map(|i| match i {
            0 => config.rule(),
            _ => {
                let [low, high, ..] = seeds.at(i);
                Rule { seed: u64::from(high) << 32 | u64::from(low), ..config.rule() }
            }
        })
        .collect();
    follow(model, &prompts(model, conversations)?, &config, &rules, &model.answer_ends()?)
}

/// The tokens of an answer to each conversation, without the one that ends it.
pub(crate) fn answers(
    model: &Model,
    conversations: &[Vec<Message>],
    config: &GenerationConfig,
) -> Result<Vec<Vec<u32>>> {
    let (prompts, stop) = (prompts(model, conversations)?, model.answer_ends()?);
    if config.constraint.is_none() {
        return model.gemma.generate_batch(&prompts, config, &stop);
    }
    let all = follow(model, &prompts, config, &[config.rule()], &stop)?;
    Ok(all.into_iter().flatten().collect())
}

/// The tokens that follow `prompt`, up to one of `stop`, which is left out.
pub(in crate::model) fn follow_one(
    model: &Model,
    prompt: &[u32],
    config: &GenerationConfig,
    stop: &[u32],
) -> Result<Vec<u32>> {
    if config.constraint.is_none() {
        return model.gemma.generate(prompt, config, stop);
    }
    let one = follow(model, &[prompt.to_vec()], config, &[config.rule()], stop)?;
    Ok(one.into_iter().flatten().next().unwrap_or_default())
}

fn prompts(model: &Model, conversations: &[Vec<Message>]) -> Result<Vec<Vec<u32>>> {
    conversations.iter().map(|messages| model.tokenizer.encode_chat(messages, true)).collect()
}

/// The answers to each prompt, one by each of `rules`.
fn follow(
    model: &Model,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
    rules: &[Rule],
    stop: &[u32],
) -> Result<Vec<Vec<Vec<u32>>>> {
    config.validate()?;
    let gemma = &model.gemma;
    let start = match &config.constraint {
        Some(constraint) => {
            Some((model.tokenizer.spellings().of(&constraint.words, &model.tokenizer)?, constraint))
        }
        None => None,
    };
    let free = GenerationConfig { constraint: None, ..config.clone() };
    let mut asked = Vec::with_capacity(prompts.len() * rules.len());
    for (source, prompt) in prompts.iter().enumerate() {
        let limit = gemma.room_after(prompt, &free).map_err(|error| match prompts.len() {
            1 => error,
            _ => of_prompt(error, source),
        })?;
        if let Some((spelling, constraint)) = &start
            && limit < spelling.shortest() as usize
        {
            let help = format!(
                "the shortest answer that is {constraint} takes {} tokens, and there is room for {limit}: \
                 raise it, or shorten the prompt",
                spelling.shortest()
            );
            return Err(Error::setting("max_new_tokens", config.max_new_tokens, help));
        }
        asked.extend(rules.iter().map(|rule| Asked { source, prompt, limit, rule: *rule }));
    }
    let held = start.map(|(spelling, constraint)| {
        let vocab = gemma.config().vocab_size;
        HeldTo::new(Walk::new(spelling.clone(), constraint), &spelling, stop, vocab)
    });
    let answers = gemma.follow_all(&asked, stop, held.as_ref())?;
    let mut answers = answers.into_iter();
    Ok(prompts.iter().map(|_| answers.by_ref().take(rules.len()).collect()).collect())
}
