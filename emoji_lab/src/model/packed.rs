//! A batch of sequences as one run of tokens, padding left out.

use crate::ops::attention::Segment;

/// Sequences laid end to end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackedTokens {
    /// Token ids, `[tokens]`.
    pub ids: Vec<u32>,
    /// Each token's place in its own sequence, for RoPE.
    pub positions: Vec<u32>,
    /// Where each sequence begins and how long it is.
    pub segments: Vec<Segment>,
}

impl PackedTokens {
    /// Packs whole sequences; empty ones are left out.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Self {
        let mut packed = Self::default();
        for sequence in sequences {
            packed.push(sequence.as_ref().iter().copied().enumerate().map(|(i, id)| (i as u32, id)));
        }
        packed
    }

    /// Appends one sequence of (position, token).
    pub fn push(&mut self, tokens: impl IntoIterator<Item = (u32, u32)>) {
        let start = self.ids.len();
        for (position, id) in tokens {
            self.positions.push(position);
            self.ids.push(id);
        }
        let len = self.ids.len() - start;
        if len > 0 {
            self.segments.push(Segment { q_start: start, q_len: len, k_start: start, k_len: len });
        }
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
