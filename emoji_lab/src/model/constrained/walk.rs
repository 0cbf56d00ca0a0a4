//! How far an answer is.

use std::sync::Arc;

use super::spelling::{NEVER, Spelling, Step};
use crate::task::{Constraint, ROOT};

/// One answer's way through the words of its constraint.
#[derive(Clone)]
pub(in crate::model) struct Walk {
    spelling: Arc<Spelling>,
    max_words: usize,
    max_times: usize,
    /// Words that are over: another has begun behind them.
    ended: Vec<u32>,
    /// Where the word that has begun is.
    node: u32,
    /// The first bytes of its next character, if it is spelled by bytes.
    begun: Vec<u8>,
    /// What `ended` leaves of the costs.
    costs: Costs,
}

impl Walk {
    pub(super) fn new(spelling: Arc<Spelling>, constraint: &Constraint) -> Self {
        let (max_words, max_times) = (constraint.max_words, constraint.max_times);
        let (ended, begun, costs) = (vec![], vec![], Costs(vec![]));
        Self { spelling, max_words, max_times, ended, node: ROOT, begun, costs }
    }

    /// The word that is complete here, if it may be said (once more).
    fn complete(&self) -> Option<u32> {
        let word = self.spelling.words.tree().value(self.node).filter(|_| self.begun.is_empty())?;
        (times(&self.ended, word) < self.max_times).then_some(word)
    }

    /// Whether the answer may end here.
    pub(super) fn may_end(&self) -> bool {
        self.complete().is_some()
    }

    /// The tokens that may follow where `left` more are allowed, in no order: behind each of them, a
    /// word can be ended with what is then left.
    pub(super) fn allowed(&self, left: usize) -> Vec<u32> {
        let left = u32::try_from(left).unwrap_or(NEVER).min(NEVER - 1);
        let spelling = &*self.spelling;
        let mut allowed = vec![];
        // On with the word that has begun.
        let on = &spelling.children[self.node as usize];
        if self.begun.is_empty() {
            let steps = spelling.steps[self.node as usize].iter();
            let fit = steps.filter(|step| self.fits(step, &self.ended, &self.costs, left));
            allowed.extend(fit.map(|step| step.token));
        }
        let mut bytes = vec![];
        self.add_bytes(on, &|_| true, &self.costs, left, &mut bytes);
        // Or with another behind it. Its first bytes may be there already.
        if let Some(ended) = self.another() {
            let costs = self.costs_after(&ended);
            let begins = |first: char| on.binary_search_by_key(&first, |(c, _)| *c).is_err();
            if self.begun.is_empty() {
                let steps = spelling.steps[ROOT as usize].iter();
                let fit = steps.filter(|step| begins(step.first) && self.fits(step, &ended, &costs, left));
                allowed.extend(fit.map(|step| step.token));
            }
            self.add_bytes(&spelling.children[ROOT as usize], &begins, &costs, left, &mut bytes);
        }
        allowed.extend(bytes);
        allowed
    }

    /// Adds the tokens of the next byte of characters in `children`, which are in order, that may follow.
    fn add_bytes(
        &self,
        children: &[(char, u32)],
        may: &dyn Fn(char) -> bool,
        costs: &Costs,
        left: u32,
        tokens: &mut Vec<u32>,
    ) {
        // Characters in order are in order byte by byte: those that begin alike lie together, and one
        // that may follow is enough for all of them.
        let is_before = |&(c, _): &(char, u32), bytes: &[u8]| utf8(c, &mut [0; 4]) < bytes;
        let mut at = children.partition_point(|child| is_before(child, &self.begun));
        while let Some(&(c, next)) = children.get(at) {
            let Some((token, bytes)) = self.spelling.bytes_left(c, &self.begun) else {
                match utf8(c, &mut [0; 4]).starts_with(&self.begun) {
                    true => at += 1,
                    false => break,
                }
                continue;
            };
            at += 1;
            if may(c) && bytes + costs.of(&self.spelling, next) <= left {
                if !tokens.contains(&token) {
                    tokens.push(token);
                }
                let mut room = [0; 4];
                let alike = &utf8(c, &mut room)[..self.begun.len() + 1];
                let last = children[at..].partition_point(|&(c, _)| utf8(c, &mut [0; 4]).starts_with(alike));
                at += last;
            }
        }
    }

    /// The words that are over where another begins here; `None` if none may.
    fn another(&self) -> Option<Vec<u32>> {
        let word = self.spelling.words.tree().value(self.node)?;
        let fits = times(&self.ended, word) < self.max_times && self.ended.len() + 1 < self.max_words;
        fits.then(|| self.ended.iter().copied().chain([word]).collect())
    }

    /// Whether `step` may be taken behind the words `ended`, which leave `costs`.
    fn fits(&self, step: &Step, ended: &[u32], costs: &Costs, left: u32) -> bool {
        if step.ended.is_empty() {
            return costs.of(&self.spelling, step.node) < left;
        }
        let all = [ended, &step.ended].concat();
        all.len() < self.max_words
            && step.ended.iter().all(|word| times(&all, *word) <= self.max_times)
            && self.costs_after(&all).of(&self.spelling, step.node) < left
    }

    fn costs_after(&self, ended: &[u32]) -> Costs {
        let over = ended.iter().copied().filter(|word| times(ended, *word) >= self.max_times);
        Costs::without(&self.spelling, &over.collect::<Vec<_>>())
    }

    /// Reads `token`, one of those allowed.
    pub(super) fn read(&mut self, token: u32) {
        let before = self.ended.len();
        if let Some(byte) = self.spelling.byte_of(token) {
            self.begun.push(byte);
            let c = std::str::from_utf8(&self.begun).ok().and_then(|text| text.chars().next());
            if let Some((next, ended)) = c.and_then(|c| self.spelling.words.step(self.node, c)) {
                self.begun.clear();
                self.ended.extend(ended);
                self.node = next;
            }
        } else {
            let find = |node: u32| {
                let steps = &self.spelling.steps[node as usize];
                steps.binary_search_by_key(&token, |step| step.token).ok().map(|at| &steps[at])
            };
            let Some((step, over)) = find(self.node)
                .map(|step| (step, None))
                .or_else(|| Some((find(ROOT)?, self.spelling.words.tree().value(self.node))))
            else {
                return;
            };
            self.ended.extend(over);
            self.ended.extend(&*step.ended);
            self.node = step.node;
        }
        if self.ended.len() > before {
            self.costs = self.costs_after(&self.ended);
        }
    }
}

fn utf8(c: char, room: &mut [u8; 4]) -> &[u8] {
    c.encode_utf8(room).as_bytes()
}

fn times(words: &[u32], word: u32) -> usize {
    words.iter().filter(|w| **w == word).count()
}

/// The fewest tokens from a node to the end of a word, where some words may not be said again: of the
/// nodes on their ways, ascending; elsewhere they are the spelling's.
#[derive(Clone)]
struct Costs(Vec<(u32, u32)>);

impl Costs {
    fn without(spelling: &Spelling, over: &[u32]) -> Self {
        let mut nodes: Vec<u32> = over.iter().flat_map(|word| spelling.words.way(*word)).collect();
        nodes.sort_unstable_by_key(|node| std::cmp::Reverse(*node));
        nodes.dedup();
        // From the ends to the beginnings; what is further on has a higher number.
        let mut costs = Self(Vec::with_capacity(nodes.len()));
        let mut found = vec![];
        for node in nodes {
            let ends = spelling.words.tree().value(node).is_some_and(|word| !over.contains(&word));
            let cost = match ends {
                true => 0,
                false => spelling.cost_beyond(node, |next| {
                    let there = found.iter().find(|(at, _)| *at == next);
                    there.map_or(spelling.costs[next as usize], |(_, cost)| *cost)
                }),
            };
            found.push((node, cost));
        }
        found.reverse();
        costs.0 = found;
        costs
    }

    fn of(&self, spelling: &Spelling, node: u32) -> u32 {
        match self.0.binary_search_by_key(&node, |(at, _)| *at) {
            Ok(at) => self.0[at].1,
            Err(_) => spelling.costs[node as usize],
        }
    }
}
