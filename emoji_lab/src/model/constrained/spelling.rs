//! The words of a constraint, spelled in a vocabulary's tokens.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::model::Tokenizer;
use crate::task::{ROOT, Words};

/// More tokens than there can be.
pub(super) const NEVER: u32 = u32::MAX / 4;

/// A token that can be read at some node of the tree of words.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) token: u32,
    /// Its first character.
    pub(super) first: char,
    /// The node behind it.
    pub(super) node: u32,
    /// Words that end within it, since another begins behind them.
    pub(super) ended: Box<[u32]>,
}

/// Which tokens spell the words of a constraint.
pub(crate) struct Spelling {
    pub(super) words: Words,
    /// By node of the tree of words, tokens whose first character goes on from there, ascending. Those
    /// of the root also follow where a word is complete.
    pub(super) steps: Vec<Vec<Step>>,
    /// By node, the characters that go on from there.
    pub(super) children: Vec<Vec<(char, u32)>>,
    /// The tokens of single bytes.
    bytes: Box<[Option<u32>; 256]>,
    byte_of: HashMap<u32, u8>,
    /// By node, the fewest tokens to the end of a word.
    pub(super) costs: Vec<u32>,
    /// Every token that an answer can hold, ascending.
    pub(super) tokens: Vec<u32>,
}

impl Spelling {
    pub(super) fn new(words: &Words, tokenizer: &Tokenizer) -> Self {
        let tree = words.tree();
        let mut children = vec![vec![]; tree.len()];
        for (node, c, next) in tree.edges() {
            children[node as usize].push((c, next));
        }
        children.iter_mut().for_each(|of_node| of_node.sort_unstable());
        let known: HashSet<char> = tree.edges().map(|(_, c, _)| c).collect();
        let mut bytes = Box::new([None; 256]);
        let mut by_first = HashMap::<char, Vec<(u32, String)>>::new();
        for (id, token) in tokenizer.text_tokens() {
            match byte(&token) {
                Some(byte) => bytes[usize::from(byte)] = Some(id),
                None => {
                    let text = token.replace('▁', " ");
                    if let Some(first) =
                        text.chars().next().filter(|_| text.chars().all(|c| known.contains(&c)))
                    {
                        by_first.entry(first).or_default().push((id, text));
                    }
                }
            }
        }
        let byte_of = (0..=255u8).filter_map(|byte| Some((bytes[usize::from(byte)]?, byte))).collect();
        let mut new = Self {
            words: words.clone(),
            steps: vec![],
            children,
            bytes,
            byte_of,
            costs: vec![],
            tokens: vec![],
        };
        new.steps = (0..tree.len() as u32).map(|node| new.steps_from(node, &by_first)).collect();
        new.costs = vec![NEVER; tree.len()];
        for node in (0..tree.len() as u32).rev() {
            new.costs[node as usize] = match tree.value(node) {
                Some(_) => 0,
                None => new.cost_beyond(node, |next| new.costs[next as usize]),
            };
        }
        // A node from which no word can be ended is not entered.
        let costs = &new.costs;
        new.steps.iter_mut().for_each(|steps| steps.retain(|step| costs[step.node as usize] < NEVER));
        let mut tokens: Vec<u32> = new.steps.iter().flatten().map(|step| step.token).collect();
        tokens.extend(new.bytes.iter().flatten());
        tokens.sort_unstable();
        tokens.dedup();
        new.tokens = tokens;
        new
    }

    /// The tokens that go on with the word at `node`.
    fn steps_from(&self, node: u32, by_first: &HashMap<char, Vec<(u32, String)>>) -> Vec<Step> {
        let mut steps = vec![];
        for (first, _) in &self.children[node as usize] {
            for (token, text) in by_first.get(first).into_iter().flatten() {
                let (mut end, mut ended) = (node, vec![]);
                let whole = text.chars().all(|c| match self.words.step(end, c) {
                    Some((next, word)) => {
                        end = next;
                        ended.extend(word);
                        true
                    }
                    None => false,
                });
                if whole {
                    let (token, first) = (*token, *first);
                    steps.push(Step { token, first, node: end, ended: ended.into() });
                }
            }
        }
        steps.sort_unstable_by_key(|step| step.token);
        steps
    }

    /// The fewest tokens from `node` to the end of a word that is longer, given those of the nodes
    /// further on.
    pub(super) fn cost_beyond(&self, node: u32, cost: impl Fn(u32) -> u32) -> u32 {
        let within = self.steps[node as usize].iter().filter(|step| step.ended.is_empty());
        let by_tokens = within.map(|step| 1 + cost(step.node)).min();
        let by_bytes = self.children[node as usize]
            .iter()
            .filter_map(|&(c, next)| self.bytes_left(c, &[]).map(|(_, bytes)| bytes + cost(next)));
        by_tokens.into_iter().chain(by_bytes.min()).min().unwrap_or(NEVER).min(NEVER)
    }

    /// How `c` is spelled behind its first bytes, `begun`: the token of the next byte, and how many there
    /// are left. `None` if it does not begin so, or a byte has no token.
    pub(super) fn bytes_left(&self, c: char, begun: &[u8]) -> Option<(u32, u32)> {
        let mut room = [0; 4];
        let rest = c.encode_utf8(&mut room).as_bytes().strip_prefix(begun)?;
        let token = |byte: &u8| self.bytes[usize::from(*byte)];
        let all = rest.iter().all(|byte| token(byte).is_some());
        Some((rest.first().and_then(token).filter(|_| all)?, rest.len() as u32))
    }

    pub(super) fn byte_of(&self, token: u32) -> Option<u8> {
        self.byte_of.get(&token).copied()
    }

    /// The fewest tokens that an answer takes.
    pub(super) fn shortest(&self) -> u32 {
        self.costs[ROOT as usize]
    }
}

/// The byte that a token such as `<0xF0>` stands for.
fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// How many are kept.
const KEPT: usize = 8;

/// The spellings that were asked for, in one vocabulary.
#[derive(Clone, Default)]
pub(in crate::model) struct Spellings(Arc<Mutex<Vec<Arc<Spelling>>>>);

impl Spellings {
    /// That of `words`, which is made if it is not there.
    ///
    /// # Errors
    /// [`Error::Setting`] if the vocabulary can spell none of them.
    pub(super) fn of(&self, words: &Words, tokenizer: &Tokenizer) -> Result<Arc<Spelling>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = kept.iter().find(|spelling| spelling.words == *words) {
            return Ok(there.clone());
        }
        let new = Arc::new(Spelling::new(words, tokenizer));
        if new.shortest() >= NEVER {
            let help = "the model's tokenizer can spell none of them: give words of characters that it knows";
            return Err(Error::setting("words", words, help));
        }
        kept.insert(0, new.clone());
        kept.truncate(KEPT);
        Ok(new)
    }
}
