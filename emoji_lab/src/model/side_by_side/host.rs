//! Sequences side by side on the CPU.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Asked, SideBySide};
use crate::error::Result;
use crate::host;
use crate::model::generate::FIRST_ROOM;
use crate::model::{Gemma3, KvCache};
use crate::ops::lora_linear::{self, Weight};
use crate::ops::sample::{Rule, cpu};

/// Sequences that are generated side by side. More of them gain little: the products are then bound
/// by arithmetic, not by the reading of weights.
pub(in crate::model) const ROWS: usize = 64;

/// Tokens that the prompts of the sequences side by side may have together, which bounds the memory
/// of their caches; a longer prompt goes alone.
pub(in crate::model) const PROMPT_TOKENS: usize = 8192;

/// Tokens of prompts that are read in one step, if it is more than one prompt: what is computed of them
/// stays in a core's cache.
const NEW_TOKENS: usize = 256;

/// A sequence that grows.
struct Sequence {
    number: usize,
    rule: Rule,
    /// Of its prompt.
    start: usize,
    /// Prompt and answer so far.
    tokens: Vec<u32>,
}

/// The model on the CPU, with the sequences that grow there.
pub(super) struct OnHost<'a> {
    gemma: &'a Gemma3,
    /// What every sequence begins with. A copy is the same as reading it again, for a token's numbers do
    /// not depend on what is computed beside it.
    start: KvCache,
    /// The part of the head that logits are asked of; all of it where there is none.
    head: Option<Weight>,
    sequences: Vec<Sequence>,
    /// One for each sequence.
    caches: Vec<KvCache>,
    /// Sequences to come from the prompt that another, of this place, is about to read.
    twins: Vec<(Sequence, usize)>,
}

impl<'a> OnHost<'a> {
    /// For the sequences `asked`, with the logits of the tokens `head` or of all.
    pub(super) fn new(gemma: &'a Gemma3, asked: &[Asked<'_>], head: Option<&[u32]>) -> Result<Self> {
        let begin = common_start(asked);
        let mut start = KvCache::new(gemma.config(), begin.len())?;
        if !begin.is_empty() {
            gemma.decode(begin, &mut start)?;
        }
        let head = head.map(|tokens| gemma.head_rows(tokens)).transpose()?.map(Weight::from);
        Ok(Self { gemma, start, head, sequences: vec![], caches: vec![], twins: vec![] })
    }

    /// Reads what is unread: the logits of what follows, and which of their rows is each sequence's. A
    /// sequence that is new reads its prompt in the same pass in which the others read their last token,
    /// and those of the same prompt begin with a copy of its cache.
    fn read(&mut self) -> Result<(Tensor, Vec<usize>)> {
        let mut unread = Vec::with_capacity(self.sequences.len());
        for (sequence, cache) in self.sequences.iter().zip(&mut self.caches) {
            let new = &sequence.tokens[cache.len()..];
            cache.make_room(new.len())?;
            unread.push(new);
        }
        let hidden = self.gemma.read_rows(&unread, &mut self.caches)?;
        let logits = match &self.head {
            Some(head) => lora_linear::forward_by_row(&hidden, head, None)?,
            None => self.gemma.logits(&hidden)?,
        };
        let mut rows: Vec<usize> = (0..self.sequences.len()).collect();
        for (sequence, first) in std::mem::take(&mut self.twins) {
            self.caches.push(self.caches[first].copy()?);
            self.sequences.push(sequence);
            rows.push(first);
        }
        Ok((logits, rows))
    }
}

impl SideBySide for OnHost<'_> {
    fn begin(&mut self, asked: &[Asked<'_>], first: usize) -> Result<usize> {
        let mut rows = self.sequences.len();
        let mut prompt_tokens: usize = self.sequences.iter().map(|sequence| sequence.start).sum();
        let (mut new_tokens, mut taken) = (0, first);
        while let Some(next) = asked.get(taken) {
            // All of one prompt at once: it is read once.
            let same = asked[taken..].iter().take_while(|other| other.source == next.source).count();
            let all = same * next.prompt.len();
            let new = next.prompt.len() - self.start.len();
            let fits = rows + same <= ROWS
                && prompt_tokens + all <= PROMPT_TOKENS
                && (new_tokens == 0 || new_tokens + new <= NEW_TOKENS);
            if rows > 0 && !fits {
                break;
            }
            (rows, prompt_tokens, new_tokens) = (rows + same, prompt_tokens + all, new_tokens + new);
            let mut cache =
                KvCache::new(self.gemma.config(), next.prompt.len() + next.limit.min(FIRST_ROOM))?;
            cache.begin_with(&self.start)?;
            let place = self.sequences.len();
            for (number, asked) in asked.iter().enumerate().skip(taken).take(same) {
                let Asked { prompt, rule, .. } = *asked;
                let sequence = Sequence { number, rule, start: prompt.len(), tokens: prompt.to_vec() };
                match number == taken {
                    true => self.sequences.push(sequence),
                    false => self.twins.push((sequence, place)),
                }
            }
            self.caches.push(cache);
            taken += same;
        }
        Ok(taken - first)
    }

    fn choose(&mut self) -> Result<Vec<(usize, Vec<u32>)>> {
        let (logits, rows) = self.read()?;
        let choose = |(sequence, row): (&mut Sequence, usize)| {
            let token = cpu::next_token(&logits.get(row)?, &sequence.tokens, &sequence.rule)?;
            sequence.tokens.push(token);
            Ok((sequence.number, vec![token]))
        };
        self.sequences.par_iter_mut().zip(rows).map(choose).collect()
    }

    fn logits(&mut self) -> Result<Vec<(usize, Vec<f32>)>> {
        let (logits, rows) = self.read()?;
        let of = |(sequence, row): (&Sequence, usize)| {
            Ok((sequence.number, host::read(&logits.get(row)?, |logits| Ok(logits.to_vec()))?))
        };
        self.sequences.iter().zip(rows).map(of).collect()
    }

    fn follow(&mut self, tokens: &[(usize, u32)]) -> Result<()> {
        for (number, token) in tokens {
            if let Some(sequence) = self.sequences.iter_mut().find(|sequence| sequence.number == *number) {
                sequence.tokens.push(*token);
            }
        }
        Ok(())
    }

    fn end(&mut self, number: usize) {
        if let Some(place) = self.sequences.iter().position(|sequence| sequence.number == number) {
            self.sequences.swap_remove(place);
            self.caches.swap_remove(place);
        }
    }
}

/// What all of several prompts begin with, less than the shortest of them: a prompt's last token is
/// read to know what follows.
fn common_start<'a>(asked: &[Asked<'a>]) -> &'a [u32] {
    let Some(first) = asked.first() else { return &[] };
    let mut others = asked.iter().filter(|other| other.source != first.source).peekable();
    if others.peek().is_none() {
        return &[];
    }
    let same = |other: &Asked<'_>| first.prompt.iter().zip(other.prompt).take_while(|(a, b)| a == b).count();
    let shortest = asked.iter().map(|asked| asked.prompt.len()).min().unwrap_or(0);
    let common = others.map(same).min().unwrap_or(0);
    &first.prompt[..common.min(shortest.saturating_sub(1))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_prompts_begin_with() {
        let ids = |prompts: &[&[u32]]| {
            let all = prompts.iter().copied().enumerate();
            let asked: Vec<Asked<'_>> = all
                .flat_map(|(source, prompt)| [Asked { source, prompt, limit: 1, rule: Rule::GREEDY }; 2])
                .collect();
            common_start(&asked).to_vec()
        };
        assert_eq!(ids(&[&[1, 2, 3, 4], &[1, 2, 9], &[1, 2, 3]]), [1, 2]);
        assert_eq!(ids(&[&[1, 2, 3], &[1, 2, 3]]), [1, 2]);
        assert_eq!(ids(&[&[1, 2, 3], &[1, 2]]), [1]);
        for none in [&[][..], &[&[1, 2][..]], &[&[1], &[1]], &[&[1, 2], &[2, 2]], &[&[], &[1]]] {
            assert!(ids(none).is_empty(), "{none:?}");
        }
    }
}
