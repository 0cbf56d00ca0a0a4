//! Answers that grow side by side.

use std::collections::VecDeque;

use candle_core::Tensor;
use rayon::prelude::*;

use super::spelling::Spelling;
use super::walk::Walk;
use crate::error::{Error, Result};
use crate::host;
use crate::model::generate::FIRST_ROOM;
use crate::model::{Gemma3, KvCache};
use crate::ops::lora_linear::{self, Weight};
use crate::ops::sample::{Rule, cpu};

/// Sequences side by side, and tokens of their prompts together: as in `generate_batch`.
const ROWS: usize = 64;
const PROMPT_TOKENS: usize = 4096;

/// A prompt that waits for its turn.
pub(super) struct Asked<'a> {
    pub(super) number: usize,
    pub(super) prompt: &'a [u32],
    /// Tokens that its answers may have.
    pub(super) limit: usize,
}

/// The tokens that answers can hold, with their part of the head.
pub(super) struct Head {
    tokens: Vec<u32>,
    weight: Tensor,
}

impl Head {
    pub(super) fn new(gemma: &Gemma3, spelling: &Spelling, stop: &[u32]) -> Result<Self> {
        let vocab = gemma.config().vocab_size;
        let mut tokens = [spelling.tokens.as_slice(), stop].concat();
        tokens.retain(|token| (*token as usize) < vocab);
        tokens.sort_unstable();
        tokens.dedup();
        Ok(Self { weight: gemma.head_rows(&tokens)?, tokens })
    }
}

/// One of the answers to a prompt.
struct Row<'a> {
    number: usize,
    prompt: &'a [u32],
    limit: usize,
    /// Which of the prompt's answers.
    draw: usize,
    /// Prompt and answer so far.
    tokens: Vec<u32>,
    held: Option<Held>,
}

/// A row's constraint.
#[derive(Clone)]
struct Held {
    walk: Walk,
    /// Tokens that may come next, those that end the answer left out.
    allowed: Vec<u32>,
}

/// The answers that grow side by side.
pub(super) struct Rows<'a> {
    pub(super) gemma: &'a Gemma3,
    /// One for each answer to a prompt.
    pub(super) rules: &'a [Rule],
    pub(super) stop: &'a [u32],
    /// What all answers are held to.
    pub(super) held: Option<(Walk, Head)>,
    rows: Vec<Row<'a>>,
    /// One for each row.
    caches: Vec<KvCache>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        gemma: &'a Gemma3,
        rules: &'a [Rule],
        stop: &'a [u32],
        held: Option<(Walk, Head)>,
    ) -> Self {
        Self { gemma, rules, stop, held, rows: vec![], caches: vec![] }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes in prompts, in their order, while there is room for all answers to the next.
    pub(super) fn fill(&mut self, waiting: &mut VecDeque<Asked<'a>>) -> Result<()> {
        let mut tokens: usize = self.rows.iter().map(|row| row.prompt.len()).sum();
        let mut rows = self.rows.len();
        while let Some(next) = waiting.front() {
            let (more, longer) = (rows + self.rules.len(), tokens + next.prompt.len() * self.rules.len());
            if rows > 0 && (more > ROWS || longer > PROMPT_TOKENS) {
                break;
            }
            let Some(Asked { number, prompt, limit }) = waiting.pop_front() else { break };
            (rows, tokens) = (more, longer);
            self.caches.push(KvCache::new(self.gemma.config(), prompt.len() + limit.min(FIRST_ROOM))?);
            let held = self.held.as_ref().map(|(walk, _)| Held::new(walk.clone(), limit, self.stop));
            self.rows.push(Row { number, prompt, limit, draw: 0, tokens: prompt.to_vec(), held });
        }
        Ok(())
    }

    /// Adds a token to each row. A row that is new reads its prompt in the same pass in which the others
    /// read their last token, and becomes as many rows as the prompt is to have answers.
    pub(super) fn step(&mut self) -> Result<()> {
        let new: Vec<usize> = (0..self.rows.len()).filter(|&i| self.caches[i].is_empty()).collect();
        let mut unread = Vec::with_capacity(self.rows.len());
        for (row, cache) in self.rows.iter().zip(&mut self.caches) {
            let tokens = &row.tokens[cache.len()..];
            cache.make_room(tokens.len())?;
            unread.push(tokens);
        }
        let hidden = self.gemma.read_rows(&unread, &mut self.caches)?;
        let logits = match &self.held {
            Some((_, head)) => {
                lora_linear::forward_by_row(&hidden, &Weight::Dense(head.weight.clone()), None)?
            }
            None => self.gemma.logits(&hidden)?,
        };
        let mut source: Vec<usize> = (0..self.rows.len()).collect();
        for first in new {
            for draw in 1..self.rules.len() {
                let Row { number, prompt, limit, .. } = self.rows[first];
                let (tokens, held) = (prompt.to_vec(), self.rows[first].held.clone());
                self.rows.push(Row { number, prompt, limit, draw, tokens, held });
                self.caches.push(self.caches[first].copy()?);
                source.push(first);
            }
        }
        let vocab = self.gemma.config().vocab_size;
        let head = self.held.as_ref().map(|(_, head)| head.tokens.as_slice());
        let (rules, stop) = (self.rules, self.stop);
        self.rows.par_iter_mut().zip(source).try_for_each(|(row, source)| {
            let (logits, rule) = (logits.get(source)?, &rules[row.draw]);
            let left = row.limit - (row.tokens.len() - row.prompt.len());
            let token = match (&mut row.held, head) {
                (Some(held), Some(head)) => {
                    let token = held.choose(&logits, (head, vocab), &row.tokens, rule, stop)?;
                    held.read(token, left - 1, stop);
                    token
                }
                _ => cpu::next_token(&logits, &row.tokens, rule)?,
            };
            row.tokens.push(token);
            Ok(())
        })
    }

    /// Takes out the answers that are over: the number of the prompt, of the answer, and its tokens.
    pub(super) fn take_finished(&mut self) -> Vec<(usize, usize, Vec<u32>)> {
        let mut finished = vec![];
        for i in (0..self.rows.len()).rev() {
            let row = &self.rows[i];
            let answer = &row.tokens[row.prompt.len()..];
            let stopped = answer.last().is_some_and(|token| self.stop.contains(token));
            let over = row.held.as_ref().is_some_and(Held::is_over);
            if stopped || over || answer.len() >= row.limit {
                let answer = answer[..answer.len() - usize::from(stopped)].to_vec();
                finished.push((row.number, row.draw, answer));
                self.rows.swap_remove(i);
                self.caches.swap_remove(i);
            }
        }
        finished
    }
}

impl Held {
    fn new(walk: Walk, left: usize, stop: &[u32]) -> Self {
        let mut new = Self { walk, allowed: vec![] };
        new.look(left, stop);
        new
    }

    fn look(&mut self, left: usize, stop: &[u32]) {
        self.allowed = self.walk.allowed(left);
        self.allowed.retain(|token| !stop.contains(token));
    }

    /// Whether nothing but the end can follow.
    fn is_over(&self) -> bool {
        self.allowed.is_empty() && self.walk.may_end()
    }

    fn read(&mut self, token: u32, left: usize, stop: &[u32]) {
        if !stop.contains(&token) {
            self.walk.read(token);
            self.look(left, stop);
        }
    }

    /// The token that follows `seen`, of those allowed, given the logits of the head's.
    fn choose(
        &mut self,
        logits: &Tensor,
        (head, vocab): (&[u32], usize),
        seen: &[u32],
        rule: &Rule,
        stop: &[u32],
    ) -> Result<u32> {
        let ends: &[u32] = if self.walk.may_end() { stop } else { &[] };
        let candidates = || self.allowed.iter().chain(ends);
        let Some(first) = candidates().next() else {
            let help = "A token that spells its words is one that ends answers: see eos_token_id";
            return Err(Error::model("the constraint", "no token can follow", help));
        };
        let mut masked = vec![f32::NEG_INFINITY; vocab];
        candidates().for_each(|token| masked[*token as usize] = f32::INFINITY);
        host::read(logits, |logits| {
            for (token, logit) in head.iter().zip(logits) {
                let place = &mut masked[*token as usize];
                if *place == f32::INFINITY {
                    *place = *logit;
                }
            }
            Ok(())
        })?;
        let token = cpu::next_token(&host::tensor(masked, vocab)?, seen, rule)?;
        // Where no logit is a number, the sampler answers with a token of its own.
        Ok(if candidates().any(|candidate| *candidate == token) { token } else { *first })
    }
}
