//! Many sequences that grow side by side: the loop, and the seam to the devices that compute them.
//!
//! Sequences begin as there is room, grow by one or more tokens a step, and leave when their answer is
//! over, which makes room for the next. What a token costs is the device's business ([`SideBySide`]); when
//! an answer is over, and what a constraint allows, is decided here, for all devices alike.

mod host;
mod reader;

use rayon::prelude::*;

use super::Gemma3;
use super::constrained::{Held, HeldTo};
use super::stream::Streams;
use crate::error::{Error, Result};
use crate::ops::pool::on_pool;
use crate::ops::sample::Rule;
use crate::ops::team::Team;
use host::OnHost;
#[cfg(test)]
pub(super) use host::{PROMPT_TOKENS, ROWS};
use reader::{ByStreams, ByTensors};

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

/// Sequences that one device has side by side: for fewer another is not worth its weights' upload.
const WORTH_A_DEVICE: usize = 64;

/// `asked` in parts of about the same number, for one device each, at most `devices`. Sequences of one
/// prompt stay together: what they begin with is read once.
fn dealt<'a, 'b>(asked: &'a [Asked<'b>], devices: usize) -> Vec<&'a [Asked<'b>]> {
    let count = asked.len().div_ceil(WORTH_A_DEVICE).clamp(1, devices.max(1));
    let (mut parts, mut rest) = (vec![], asked);
    for left in (2..=count).rev() {
        let source = rest.get(rest.len().div_ceil(left)).map(|first| first.source);
        let end = rest.iter().position(|asked| Some(asked.source) == source).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        parts.push(part);
        rest = after;
    }
    parts.push(rest);
    parts.retain(|part| !part.is_empty());
    parts
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
        let parts = dealt(asked, self.device().count());
        let elsewhere = self.on_device.with_several(self, parts, |asked, generator| {
            let device = generator.side_by_side(asked, head)?;
            grow(device, asked, stop, held)
        })?;
        match elsewhere {
            Some(answers) => Ok(answers.concat()),
            None => self.follow_all_here(asked, stop, held),
        }
    }

    /// [`Self::follow_all`] on the CPU.
    fn follow_all_here(
        &self,
        asked: &[Asked<'_>],
        stop: &[u32],
        held: Option<&HeldTo>,
    ) -> Result<Vec<Vec<u32>>> {
        let head = held.map(|held| held.tokens.as_slice());
        let stored = self.on_device.on_host(self)?;
        match Streams::new(self, &stored)? {
            Some(streams) => Team::with(|team| {
                let reader = ByStreams::new(self, streams, head, team)?;
                grow(&mut OnHost::new(reader, asked)?, asked, stop, held)
            }),
            None => {
                on_pool(|| grow(&mut OnHost::new(ByTensors::new(self, head)?, asked)?, asked, stop, held))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_dealt_out_in_order_and_prompts_stay_whole() {
        let prompt = [2, 3];
        for (count, samples) in [(0, 1), (1, 1), (64, 1), (65, 1), (253, 1), (253, 16), (3, 500), (1, 300)] {
            let asked: Vec<Asked<'_>> = (0..count * samples)
                .map(|i| Asked { source: i / samples, prompt: &prompt, limit: 5, rule: Rule::GREEDY })
                .collect();
            for devices in [1, 2, 3, 8] {
                let parts = dealt(&asked, devices);
                let sources: Vec<Vec<usize>> =
                    parts.iter().map(|part| part.iter().map(|asked| asked.source).collect()).collect();
                assert_eq!(sources.concat(), asked.iter().map(|asked| asked.source).collect::<Vec<_>>());
                assert!(parts.len() <= devices && parts.iter().all(|part| !part.is_empty()));
                for pair in sources.windows(2) {
                    assert!(pair[0].last() < pair[1].first(), "a prompt on two devices");
                }
                if asked.len() <= 64 {
                    assert!(parts.len() <= 1);
                }
                if samples == 1 && count == 253 {
                    let longest = parts.iter().map(|part| part.len()).max().unwrap();
                    assert_eq!((parts.len(), longest), (devices.min(4), 253usize.div_ceil(devices.min(4))));
                }
            }
        }
    }
}
