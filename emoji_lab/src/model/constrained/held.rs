//! One sequence held to a constraint.

use super::spelling::Spelling;
use super::walk::Walk;
use crate::error::{Error, Result};
use crate::ops::sample::{Rule, cpu};

/// What all answers are held to.
pub(in crate::model) struct HeldTo {
    pub(in crate::model) walk: Walk,
    /// The tokens that answers can hold, ascending: logits are asked of these.
    pub(in crate::model) tokens: Vec<u32>,
}

impl HeldTo {
    /// The words of `spelling` as `walk` begins, and one of `stop` at the end.
    pub(super) fn new(walk: Walk, spelling: &Spelling, stop: &[u32], vocab: usize) -> Self {
        let mut tokens = [spelling.tokens.as_slice(), stop].concat();
        tokens.retain(|token| (*token as usize) < vocab);
        tokens.sort_unstable();
        tokens.dedup();
        Self { walk, tokens }
    }
}

/// A sequence's constraint, as far as it is.
pub(in crate::model) struct Held {
    walk: Walk,
    /// Tokens that may come next, those that end the answer left out.
    allowed: Vec<u32>,
}

impl Held {
    /// At the beginning of an answer of at most `left` tokens, which ends with one of `stop`.
    pub(in crate::model) fn new(walk: Walk, left: usize, stop: &[u32]) -> Self {
        let mut new = Self { walk, allowed: vec![] };
        new.look(left, stop);
        new
    }

    fn look(&mut self, left: usize, stop: &[u32]) {
        self.allowed = self.walk.allowed(left);
        self.allowed.retain(|token| !stop.contains(token));
    }

    /// Whether nothing but the end can follow.
    pub(in crate::model) fn is_over(&self) -> bool {
        self.allowed.is_empty() && self.walk.may_end()
    }

    /// Goes on behind `token`, with `left` more to come.
    pub(in crate::model) fn read(&mut self, token: u32, left: usize, stop: &[u32]) {
        if !stop.contains(&token) {
            self.walk.read(token);
            self.look(left, stop);
        }
    }

    /// The token that follows `seen`, of those allowed, given the logits of `to`'s tokens.
    pub(in crate::model) fn choose(
        &self,
        logits: &[f32],
        to: &HeldTo,
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
        let mut places: Vec<usize> =
            candidates().filter_map(|token| to.tokens.binary_search(token).ok()).collect();
        places.sort_unstable();
        places.dedup();
        let tokens: Vec<u32> = places.iter().map(|place| to.tokens[*place]).collect();
        let logits = places.iter().map(|place| logits[*place]).collect();
        Ok(cpu::next_of(&tokens, logits, seen, rule).unwrap_or(*first))
    }
}
