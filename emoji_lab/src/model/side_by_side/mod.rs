//! Many sequences that grow side by side: the loop, and the seam to the devices that compute them.
//!
//! Sequences begin as there is room, grow by one or more tokens a step, and leave when their answer is
//! over, which makes room for the next. What a token costs is the device's business ([`SideBySide`]); when
//! an answer is over, and what a constraint allows, is decided here, for all devices alike.

mod host;

use rayon::prelude::*;

use super::Gemma3;
use super::constrained::{Held, HeldTo};
use crate::error::{Error, Result};
use crate::ops::pool::on_pool;
use crate::ops::sample::Rule;
use host::OnHost;
#[cfg(test)]
pub(super) use host::{PROMPT_TOKENS, ROWS};

/// A sequence that is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The number of its prompt. Sequences of one prompt stand one after the other.
    pub(crate) source: usize,
    pub(crate) prompt: &'a [u32],
    /// The most tokens that may follow, at least one.
    pub(crate) limit: usize,
    pub(crate) rule: Rule,
}

/// Sequences on a device, each called by its number among all that are asked for.
pub(crate) trait SideBySide {
    /// Takes in sequences, from number `first` on in their order, while there is room: at least one, if
    /// there is none yet. Returns how many.
    fn begin(&mut self, asked: &[Asked<'_>], first: usize) -> Result<usize>;

    /// One or more tokens that follow in some of the sequences, chosen by their rules. What is chosen
    /// behind the end of an answer is for nothing.
    fn choose(&mut self) -> Result<Vec<(usize, Vec<u32>)>>;

    /// The logits of what follows in some of the sequences, `[tokens of the head]` each, in the order in
    /// which those tokens were given. All of them wait for [`Self::follow`] then.
    fn logits(&mut self) -> Result<Vec<(usize, Vec<f32>)>>;

    /// What follows in sequences whose logits were given.
    fn follow(&mut self, tokens: &[(usize, u32)]) -> Result<()>;

    /// A sequence leaves.
    fn end(&mut self, number: usize);
}

/// A sequence that grows.
struct Growing {
    /// Prompt and answer so far.
    tokens: Vec<u32>,
    held: Option<Held>,
}

/// The answers to `asked` on a device, each up to one of `stop`, which is left out, or to its limit.
fn grow(
    device: &mut dyn SideBySide,
    asked: &[Asked<'_>],
    stop: &[u32],
    held: Option<&HeldTo>,
) -> Result<Vec<Vec<u32>>> {
    let mut answers = vec![vec![]; asked.len()];
    let mut growing: Vec<Option<Growing>> = Vec::with_capacity(asked.len());
    let mut left = 0;
    loop {
        if growing.len() < asked.len() {
            let more = device.begin(asked, growing.len())?;
            let new = &asked[growing.len()..][..more];
            growing.extend(new.iter().map(|asked| {
                let held = held.map(|held| Held::new(held.walk.clone(), asked.limit, stop));
                Some(Growing { tokens: asked.prompt.to_vec(), held })
            }));
            left += more;
        }
        if left == 0 {
            return Ok(answers);
        }
        let grown = match held {
            None => device.choose()?,
            Some(held) => choose_held(device, asked, stop, held, &mut growing)?,
        };
        for (number, tokens) in grown {
            let (Some(row), asked) = (&mut growing[number], &asked[number]) else { continue };
            let start = asked.prompt.len();
            let mut over = false;
            for token in tokens {
                if stop.contains(&token) {
                    over = true;
                    break;
                }
                row.tokens.push(token);
                if row.tokens.len() - start >= asked.limit {
                    over = true;
                    break;
                }
            }
            if over || row.held.as_ref().is_some_and(Held::is_over) {
                answers[number] = row.tokens.split_off(start);
                growing[number] = None;
                device.end(number);
                left -= 1;
            }
        }
    }
}

/// A token for each of the sequences whose logits the device gives, of those that its constraint allows.
fn choose_held(
    device: &mut dyn SideBySide,
    asked: &[Asked<'_>],
    stop: &[u32],
    to: &HeldTo,
    growing: &mut [Option<Growing>],
) -> Result<Vec<(usize, Vec<u32>)>> {
    let mut rows = vec![];
    for (number, logits) in device.logits()? {
        if let Some(row) = growing[number].take() {
            rows.push((number, logits, row));
        }
    }
    let chosen = on_pool(|| {
        let choose = |(number, logits, row): &mut (usize, Vec<f32>, Growing)| {
            let Asked { prompt, limit, rule, .. } = &asked[*number];
            let Some(held) = &mut row.held else { return Err(unheld()) };
            let token = held.choose(logits, to, &row.tokens, rule, stop)?;
            held.read(token, limit - (row.tokens.len() - prompt.len()) - 1, stop);
            Ok((*number, token))
        };
        rows.par_iter_mut().map(choose).collect::<Result<Vec<(usize, u32)>>>()
    })?;
    for (number, _, row) in rows {
        growing[number] = Some(row);
    }
    device.follow(&chosen)?;
    Ok(chosen.into_iter().map(|(number, token)| (number, vec![token])).collect())
}

fn unheld() -> Error {
    Error::model("the constraint", "a sequence is not held to it", "This is a fault of emoji_lab")
}

impl Gemma3 {
    /// The answers to `asked`, in their order, each up to one of `stop`, which is left out, and all held
    /// to `held`, where it is given.
    pub(super) fn follow_all(
        &self,
        asked: &[Asked<'_>],
        stop: &[u32],
        held: Option<&HeldTo>,
    ) -> Result<Vec<Vec<u32>>> {
        if asked.is_empty() {
            return Ok(vec![]);
        }
        let head = held.map(|held| held.tokens.as_slice());
        let elsewhere = self.on_device.with(self, |generator| {
            let device = generator.side_by_side(asked, head)?;
            grow(device, asked, stop, held)
        })?;
        match elsewhere {
            Some(answers) => Ok(answers),
            None => on_pool(|| grow(&mut OnHost::new(self, asked, head)?, asked, stop, held)),
        }
    }
}
