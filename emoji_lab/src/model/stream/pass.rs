//! Tokens that are read together, and the angles of their positions.

use crate::ops::rope::{frequencies, turn};

/// Tokens of some sequences, those of a sequence one after the other.
#[derive(Debug, Default)]
pub(super) struct Pass {
    ids: Vec<u32>,
    /// Of each token, which sequence it is of, and its place there.
    places: Vec<(usize, usize)>,
    /// Rows that are their sequences' last, with these.
    last: Vec<(usize, usize)>,
}

impl Pass {
    /// Appends tokens of `sequence`, the first of which has the place `from`.
    pub(super) fn push(&mut self, sequence: usize, ids: &[u32], from: usize, has_last: bool) {
        self.ids.extend_from_slice(ids);
        self.places.extend((from..from + ids.len()).map(|place| (sequence, place)));
        if has_last {
            self.last.push((self.ids.len() - 1, sequence));
        }
    }

    pub(super) fn clear(&mut self) {
        self.ids.clear();
        self.places.clear();
        self.last.clear();
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Each token's sequence, and its place there.
    pub(super) fn places(&self) -> &[(usize, usize)] {
        &self.places
    }

    /// One more than the highest place.
    pub(super) fn end(&self) -> usize {
        self.places.iter().map(|(_, place)| place + 1).max().unwrap_or(0)
    }

    /// Rows that are their sequences' last, with these.
    pub(super) fn last_rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.last.iter().copied()
    }
}

/// Cosines and sines of positions, computed when they are first reached.
#[derive(Debug)]
pub(super) struct Turns {
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    pub(super) fn new(head_dim: usize, theta: f64, factor: f64) -> Self {
        Self { frequencies: frequencies(head_dim, theta, factor), cos: vec![], sin: vec![] }
    }

    /// Makes those of the positions below `end`.
    pub(super) fn reach(&mut self, end: usize) {
        for position in self.cos.len() / self.frequencies.len().max(1)..end {
            for frequency in &self.frequencies {
                let (cos, sin) = turn(position as u32, *frequency);
                self.cos.push(cos);
                self.sin.push(sin);
            }
        }
    }

    /// Cosines and sines of a position.
    pub(super) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        (&self.cos[position * half..][..half], &self.sin[position * half..][..half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_know_their_sequences_and_places() {
        let mut pass = Pass::default();
        pass.push(0, &[5, 6], 3, true);
        pass.push(2, &[7], 0, false);
        assert_eq!((pass.len(), pass.end(), pass.ids()), (3, 5, &[5, 6, 7][..]));
        assert_eq!(pass.places(), [(0, 3), (0, 4), (2, 0)]);
        assert_eq!(pass.last_rows().collect::<Vec<_>>(), [(1, 0)]);
        pass.clear();
        assert_eq!((pass.len(), pass.end(), pass.last_rows().count()), (0, 0, 0));
    }

    #[test]
    fn angles_are_those_of_their_positions() {
        let mut turns = Turns::new(8, 10_000.0, 1.0);
        turns.reach(3);
        turns.reach(7);
        for position in [0, 2, 6] {
            let (cos, sin) = turns.at(position);
            for (i, frequency) in frequencies(8, 10_000.0, 1.0).into_iter().enumerate() {
                assert_eq!((cos[i], sin[i]), turn(position as u32, frequency));
            }
        }
    }
}
