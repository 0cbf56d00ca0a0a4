//! Who has which row: sequences begin, grow and leave side by side on the GPU.

use super::decode::Caches;
use super::forward::{Keep, Pass};
use super::generator::{CudaGenerator, missing};
use super::rows::{AHEAD, Choice, ROWS, Rows};
use super::step::SLOTS;
use crate::error::Result;
use crate::model::PackedTokens;
use crate::model::side_by_side::{Asked, SideBySide};
use crate::ops::decode::cuda::DecodeState;
use crate::ops::decode_rows::cuda::{CopyRows, RowCopy, RowFill};
use crate::ops::sample::Rule;
use crate::ops::step::Step;

/// Tokens of a pass over prompts. It is filled up to a multiple of these, and a longer prompt goes alone,
/// so that what comes of a prompt does not depend on what else is read: cuBLAS takes its algorithm by the
/// number of rows.
const PASS: usize = 512;

/// Caches have room for a multiple of these tokens.
const CACHE_STEP: usize = 128;

/// The sequences side by side.
pub(super) struct Batch {
    rows: Rows,
    choice: Choice,
    /// The tokens whose logits are asked for, if they are.
    head: usize,
    /// Who has each row.
    of: Vec<Option<Owner>>,
    /// As they are on the GPU, one for each row.
    states: Vec<DecodeState>,
    /// One for each row.
    rules: Vec<Rule>,
    /// Rows whose prompt was read, and that have no token yet.
    fresh: Vec<usize>,
}

/// A sequence that has a row.
struct Owner {
    number: usize,
    /// Tokens that may follow.
    left: usize,
}

/// Prompts that are read together.
#[derive(Default)]
struct Prompts<'a> {
    prompts: Vec<&'a [u32]>,
    tokens: usize,
    longest: usize,
    /// Rows that begin with one of them.
    count: usize,
}

impl Batch {
    /// The row of a sequence.
    fn row(&self, number: usize) -> Option<usize> {
        self.of.iter().position(|owner| owner.as_ref().is_some_and(|owner| owner.number == number))
    }

    /// Says how many tokens are wanted of each row that somebody has; 0 of the others.
    fn want(&mut self, wanted: impl Fn(usize, &Owner) -> usize) -> Result<usize> {
        let mut most = 0;
        for (row, (state, owner)) in self.states.iter_mut().zip(&self.of).enumerate() {
            let limit = owner.as_ref().map_or(0, |owner| wanted(row, owner));
            (state.count, state.limit) = (0, limit as i32);
            most = most.max(limit);
        }
        self.rows.buffers.write_at(self.rows.buffers.state, &self.states)?;
        Ok(most)
    }

    /// Waits for the tokens that were wanted.
    fn collect(&mut self) -> Result<Vec<(usize, Vec<u32>)>> {
        let b = &self.rows.buffers;
        let mut written = vec![0i32; self.states.len() * AHEAD];
        b.read_at(b.state, &mut self.states)?;
        b.read_at(b.written, &mut written)?;
        let mut grown = vec![];
        for ((owner, state), written) in self.of.iter_mut().zip(&self.states).zip(written.chunks(AHEAD)) {
            let Some(owner) = owner.as_mut().filter(|_| state.count > 0) else { continue };
            let tokens = &written[..(state.count as usize).min(AHEAD)];
            owner.left = owner.left.saturating_sub(tokens.len());
            grown.push((owner.number, tokens.iter().map(|token| *token as u32).collect()));
        }
        Ok(grown)
    }
}

impl CudaGenerator {
    /// Makes room for `asked`, of which logits are wanted for the tokens `head`, or tokens.
    pub(super) fn prepare(&mut self, asked: &[Asked<'_>], head: Option<&[u32]>) -> Result<()> {
        self.gpu.bind()?;
        for asked in asked {
            self.check(asked.prompt, asked.limit)?;
        }
        let longest = asked.iter().map(|asked| asked.prompt.len()).max().unwrap_or(1);
        let room = asked.iter().map(|asked| asked.prompt.len() + asked.limit).max().unwrap_or(1);
        // Angles end there, and so does every sequence.
        let room = room.next_multiple_of(CACHE_STEP).min(self.network.positions);
        self.room_for_prompts(longest.next_multiple_of(PASS))?;
        let by_rule = asked.iter().any(|asked| asked.rule.draw || asked.rule.penalty != 1.0);
        let choice = match head {
            Some(_) => Choice::OnHost,
            None if by_rule => Choice::Rule,
            None => Choice::Likeliest,
        };
        let wanted = asked.len().next_multiple_of(16).min(ROWS);
        let there = self.batch.take().map(|batch| batch.rows);
        let mut rows = match there.filter(|rows| rows.count >= wanted && rows.caches.room >= room) {
            Some(rows) => rows,
            None => {
                // Half of what is free, lest nothing is left for others.
                let (free, _) = self.gpu.memory()?;
                let fit = free / 2 / Caches::bytes_of(&self.gpu, &self.network, room).max(1);
                Rows::new(&self.gpu, &self.network, room, wanted.min(fit.max(1)))?
            }
        };
        rows.prepare(&self.gpu, &self.network, choice, head.unwrap_or_default())?;
        let count = rows.count;
        self.batch = Some(Batch {
            rows,
            choice,
            head: head.map_or(0, <[u32]>::len),
            of: (0..count).map(|_| None).collect(),
            states: vec![DecodeState::default(); count],
            rules: vec![Rule::GREEDY; count],
            fresh: vec![],
        });
        Ok(())
    }
}

impl SideBySide for CudaGenerator {
    fn begin(&mut self, asked: &[Asked<'_>], first: usize) -> Result<usize> {
        self.gpu.bind()?;
        let (Some(batch), Some((activations, inputs))) = (&mut self.batch, &mut self.prompt) else {
            return Err(missing());
        };
        let free: Vec<usize> = (0..batch.of.len()).filter(|row| batch.of[*row].is_none()).collect();
        // A pass over one prompt costs what one over many does.
        let waiting = asked.len() - first;
        let enough = (batch.of.len() / 4).max(1).min(waiting);
        if free.len() < batch.of.len() && free.len() < enough {
            return Ok(0);
        }
        let new = &asked[first..][..free.len().min(waiting)];
        let (mut passes, mut fills, mut copies): (Vec<Prompts<'_>>, _, _) = (vec![], vec![], vec![]);
        let mut source = None;
        for (number, (asked, &row)) in (first..).zip(new.iter().zip(&free)) {
            let len = asked.prompt.len();
            if source != Some(asked.source) {
                source = Some(asked.source);
                if passes.last().is_none_or(|pass| pass.tokens + len > PASS) {
                    passes.push(Prompts::default());
                }
                if let Some(pass) = passes.last_mut() {
                    pass.prompts.push(asked.prompt);
                    (pass.tokens, pass.longest) = (pass.tokens + len, pass.longest.max(len));
                }
            }
            let Some(pass) = passes.last_mut() else { return Err(missing()) };
            pass.count += 1;
            let begins = pass.tokens - len;
            fills.push(RowFill { row: row as i32, first: begins as i32, len: len as i32 });
            copies.push(RowCopy { from: pass.tokens as i32 - 1, to: row as i32 });
            // The last token of the prompt is read here: what is chosen next is read at its place.
            batch.states[row] = DecodeState { position: len as i32 - 1, ..DecodeState::default() };
            batch.rules[row] = asked.rule;
            batch.of[row] = Some(Owner { number, left: asked.limit });
            batch.fresh.push(row);
        }
        let b = &batch.rows.buffers;
        b.write_at(b.fills, &fills)?;
        b.write_at(b.copies, &copies)?;
        if let Some(sampler) = batch.rows.sampler.as_ref().filter(|_| batch.choice == Choice::Rule) {
            sampler.rules(&batch.rules)?;
            for (asked, &row) in new.iter().zip(&free).filter(|(asked, _)| asked.rule.penalty != 1.0) {
                sampler.see(row, asked.prompt)?;
            }
        }
        let mut done = 0;
        for (number, prompts) in passes.iter().enumerate() {
            if number > 0 && number.is_multiple_of(SLOTS) {
                // The host's memory for a pass is used again.
                self.gpu.synchronize()?;
            }
            let tokens = prompts.tokens.next_multiple_of(PASS);
            inputs.send(number, &Step::default(), &PackedTokens::new(&prompts.prompts), &[], tokens, None)?;
            let (count, longest) = (prompts.count, prompts.longest);
            let keep =
                Keep::Rows { caches: &batch.rows.caches, fills: b.fills.at(&self.gpu, done), count, longest };
            let (gpu, network, training) = (&self.gpu, &self.network, false);
            let (arena, head_norm) = (None, None);
            let pass = Pass { gpu, network, activations, inputs, tokens, training, keep, arena, head_norm };
            let copy = CopyRows {
                from: activations.hidden,
                to: b.hidden,
                copies: b.copies.at(gpu, done),
                width: network.sizes.hidden as i32,
            };
            // SAFETY: the prompts have just been sent, and were looked at; rows are within the caches.
            unsafe {
                pass.forward()?;
                copy.launch(gpu, count)?;
            }
            done += count;
        }
        Ok(new.len())
    }

    fn choose(&mut self) -> Result<Vec<(usize, Vec<u32>)>> {
        self.gpu.bind()?;
        let Some(batch) = &mut self.batch else { return Err(missing()) };
        let fresh = std::mem::take(&mut batch.fresh);
        if fresh.is_empty() {
            let steps = batch.want(|_, owner| owner.left.min(AHEAD))?;
            for _ in 0..steps {
                batch.rows.step(&self.gpu, &self.network, batch.choice)?;
            }
        } else {
            batch.want(|row, _| usize::from(fresh.contains(&row)))?;
            batch.rows.choose(&self.gpu, &self.network, batch.choice)?;
        }
        batch.collect()
    }

    fn logits(&mut self) -> Result<Vec<(usize, Vec<f32>)>> {
        self.gpu.bind()?;
        let Some(batch) = &mut self.batch else { return Err(missing()) };
        let fresh = std::mem::take(&mut batch.fresh);
        if fresh.is_empty() {
            batch.want(|_, _| 0)?;
            batch.rows.step(&self.gpu, &self.network, batch.choice)?;
        }
        let (logits, width) = batch.rows.read_subset(&self.gpu, &self.network)?;
        let rows = batch.of.iter().enumerate().filter(|(row, _)| fresh.is_empty() || fresh.contains(row));
        let owned = rows.filter_map(|(row, owner)| Some((row, owner.as_ref()?.number)));
        Ok(owned.map(|(row, number)| (number, logits[row * width..][..batch.head].to_vec())).collect())
    }

    fn follow(&mut self, tokens: &[(usize, u32)]) -> Result<()> {
        let Some(batch) = &mut self.batch else { return Err(missing()) };
        for (number, token) in tokens {
            if let Some(row) = batch.row(*number) {
                let state = &mut batch.states[row];
                (state.token, state.position) = (*token as i32, state.position + 1);
            }
        }
        Ok(())
    }

    fn end(&mut self, number: usize) {
        if let Some(batch) = &mut self.batch
            && let Some(row) = batch.row(number)
        {
            batch.of[row] = None;
        }
    }
}
