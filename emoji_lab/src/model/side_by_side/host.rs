//! Sequences side by side on the CPU.

use rayon::prelude::*;

use super::reader::Reader;
use super::{Asked, SideBySide};
use crate::error::Result;
use crate::host;
use crate::model::generate::FIRST_ROOM;
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
pub(super) struct OnHost<R: Reader> {
    reader: R,
    /// What every sequence begins with. A copy is the same as reading it again, for a token's numbers do
    /// not depend on what is computed beside it.
    start: R::Cache,
    sequences: Vec<Sequence>,
    /// One for each sequence.
    caches: Vec<R::Cache>,
    /// Sequences to come from the prompt that another, of this place, is about to read.
    twins: Vec<(Sequence, usize)>,
}

impl<R: Reader> OnHost<R> {
    /// For the sequences `asked`.
    pub(super) fn new(mut reader: R, asked: &[Asked<'_>]) -> Result<Self> {
        let begin = common_start(asked);
        let mut start = reader.cache(begin.len())?;
        if !begin.is_empty() {
            reader.read(&[begin], std::slice::from_mut(&mut start))?;
        }
        Ok(Self { reader, start, sequences: vec![], caches: vec![], twins: vec![] })
    }

    /// Reads what is unread, and says which of the reader's rows is each sequence's. A sequence that is new reads
    /// its prompt in the same pass in which the others read their last token, and those of the same prompt begin
    /// with a copy of its cache.
    fn read(&mut self) -> Result<Vec<usize>> {
        let unread = self.sequences.iter().zip(&self.caches);
        let unread: Vec<&[u32]> = unread.map(|(sequence, cache)| &sequence.tokens[R::len(cache)..]).collect();
        self.reader.read(&unread, &mut self.caches)?;
        let mut rows: Vec<usize> = (0..self.sequences.len()).collect();
        for (sequence, first) in std::mem::take(&mut self.twins) {
            self.caches.push(self.reader.with_room(&self.caches[first], FIRST_ROOM)?);
            self.sequences.push(sequence);
            rows.push(first);
        }
        Ok(rows)
    }

    /// The likeliest token for all, if that is what all ask for and the reader knows it.
    fn likeliest(&mut self, rows: &[usize]) -> Result<Option<Vec<u32>>> {
        if !self.sequences.iter().all(|sequence| sequence.rule.is_likeliest()) {
            return Ok(None);
        }
        let tokens = self.reader.likeliest()?;
        Ok(tokens.map(|tokens| rows.iter().map(|row| tokens[*row]).collect()))
    }
}

impl<R: Reader> SideBySide for OnHost<R> {
    fn begin(&mut self, asked: &[Asked<'_>], first: usize) -> Result<usize> {
        let mut rows = self.sequences.len();
        let mut prompt_tokens: usize = self.sequences.iter().map(|sequence| sequence.start).sum();
        let (mut new_tokens, mut taken) = (0, first);
        while let Some(next) = asked.get(taken) {
            // All of one prompt at once: it is read once.
            let same = asked[taken..].iter().take_while(|other| other.source == next.source).count();
            let all = same * next.prompt.len();
            let new = next.prompt.len() - R::len(&self.start);
            let fits = rows + same <= ROWS
                && prompt_tokens + all <= PROMPT_TOKENS
                && (new_tokens == 0 || new_tokens + new <= NEW_TOKENS);
            if rows > 0 && !fits {
                break;
            }
            (rows, prompt_tokens, new_tokens) = (rows + same, prompt_tokens + all, new_tokens + new);
            let cache = self.reader.with_room(&self.start, new + next.limit.min(FIRST_ROOM))?;
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
        let rows = self.read()?;
        let chosen = match self.likeliest(&rows)? {
            Some(tokens) => tokens,
            None => {
                let (logits, of_one) = self.reader.logits()?;
                let choose = |(sequence, row): (&Sequence, usize)| {
                    let logits = logits[row * of_one..][..of_one].to_vec();
                    Ok(cpu::next_token(&host::tensor(logits, of_one)?, &sequence.tokens, &sequence.rule)?)
                };
                self.sequences.par_iter().zip(rows).map(choose).collect::<Result<_>>()?
            }
        };
        let grown = self.sequences.iter_mut().zip(chosen).map(|(sequence, token)| {
            sequence.tokens.push(token);
            (sequence.number, vec![token])
        });
        Ok(grown.collect())
    }

    fn logits(&mut self) -> Result<Vec<(usize, Vec<f32>)>> {
        let rows = self.read()?;
        let (logits, of_one) = self.reader.logits()?;
        let of = |(sequence, row): (&Sequence, usize)| {
            (sequence.number, logits[row * of_one..][..of_one].to_vec())
        };
        Ok(self.sequences.iter().zip(rows).map(of).collect())
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
