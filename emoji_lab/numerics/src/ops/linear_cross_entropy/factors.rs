//! The gradient of a trained head in its factors.
//!
//! Of a head that is also the embedding it is `dLᵀ H + E`: `dL` `[rows, vocab]` is the loss's gradient for the logits,
//! `H` `[rows, hidden]` the hidden states, and `E` comes from the embedding's side, rows of the tokens that were read.
//! A step's hundred rows of `dL` are a fifth of the product, which for a large vocabulary is the largest tensor of all;
//! so the optimizer takes the product a piece of the vocabulary at a time, and it never is in memory as a whole.
//!
//! Clipping wants the norm before: of the rows of `E` it is added up as it is, and of all others
//! `‖dLᵀ H‖² = Σᵢⱼ (dL dLᵀ)ᵢⱼ (H Hᵀ)ᵢⱼ`.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::memory::zeros;
use crate::ops::gemm::{Mat, matmul};

/// Rows of the head in a piece: as many numbers stay in the third cache.
pub const PIECE: usize = 4096;

/// The gradient of a head `[vocab, hidden]` that is also the embedding, in its factors.
#[derive(Debug)]
pub struct HeadGradient {
    vocab: usize,
    hidden: usize,
    /// Rows of `dlogits` and `states` that are there.
    rows: usize,
    /// `[rows, vocab]`, or longer; from [`Self::finish`] on without the columns of `tokens`.
    dlogits: Vec<f32>,
    /// `[rows, hidden]`.
    states: Vec<f32>,
    /// Tokens that were read, with the place of each in `of_tokens`.
    tokens: BTreeMap<u32, usize>,
    /// `[tokens, hidden]`: `E`, and from [`Self::finish`] on all of these rows' gradient.
    of_tokens: Vec<f32>,
    squares: f64,
}

impl HeadGradient {
    /// A gradient of zeros.
    pub fn new(vocab: usize, hidden: usize) -> Self {
        Self {
            vocab,
            hidden,
            rows: 0,
            dlogits: vec![],
            states: vec![],
            tokens: BTreeMap::new(),
            of_tokens: vec![],
            squares: 0.0,
        }
    }

    /// Makes it zeros again; the memory stays.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.states.clear();
        self.tokens.clear();
        self.of_tokens.clear();
        self.squares = 0.0;
    }

    /// Room for the logits of a block of rows, which [`Self::push`] gives back.
    pub(super) fn room(&mut self, rows: usize) -> Vec<f32> {
        let len = rows * self.vocab;
        match self.rows {
            0 if self.dlogits.len() >= len => std::mem::take(&mut self.dlogits),
            _ => zeros(len),
        }
    }

    /// Adds `dlogitsᵀ states`.
    pub(super) fn push(&mut self, dlogits: Vec<f32>, states: &[f32]) {
        let rows = states.len() / self.hidden;
        if self.rows == 0 {
            self.dlogits = dlogits;
        } else {
            self.dlogits.truncate(self.rows * self.vocab);
            self.dlogits.extend_from_slice(&dlogits[..rows * self.vocab]);
        }
        self.states.extend_from_slice(states);
        self.rows += rows;
    }

    /// Adds the gradient of the embedding of `ids`: `scale · dy` `[ids, hidden]`.
    pub fn add_embedding(&mut self, ids: &[u32], dy: &[f32], scale: f32) {
        for (id, dy) in ids.iter().zip(dy.chunks_exact(self.hidden)) {
            let next = self.tokens.len();
            let place = *self.tokens.entry(*id).or_insert(next) * self.hidden;
            self.of_tokens.resize(self.of_tokens.len().max(place + self.hidden), 0.0);
            for (sum, dy) in self.of_tokens[place..].iter_mut().zip(dy) {
                *sum += dy * scale;
            }
        }
    }

    fn dlogits(&self) -> Mat<'_> {
        Mat::new(&self.dlogits[..self.rows * self.vocab], self.rows, self.vocab)
    }

    fn states(&self) -> Mat<'_> {
        Mat::new(&self.states, self.rows, self.hidden)
    }

    /// Pieces of the vocabulary, in order.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocab = self.vocab;
        (0..vocab).step_by(PIECE).map(move |first| first..vocab.min(first + PIECE))
    }

    /// Ends the sums: the gradient can then be asked for.
    pub fn finish(&mut self) {
        let count = self.tokens.len();
        let mut taken = vec![0.0; self.rows * count];
        let rows = self.dlogits.chunks_exact_mut(self.vocab).take(self.rows);
        for (row, taken) in rows.zip(taken.chunks_exact_mut(count.max(1))) {
            for (token, place) in &self.tokens {
                taken[*place] = std::mem::take(&mut row[*token as usize]);
            }
        }
        let mut of_tokens = std::mem::take(&mut self.of_tokens);
        matmul(&mut of_tokens, true, 1.0, Mat::new(&taken, self.rows, count).t(), self.states());
        self.of_tokens = of_tokens;
        let own: f64 = self.of_tokens.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
        self.squares = own + self.squares_of_others();
    }

    /// `‖dLᵀ H‖²` of what is in the factors.
    fn squares_of_others(&self) -> f64 {
        let mut of_states = vec![0.0; self.rows * self.rows];
        matmul(&mut of_states, false, 1.0, self.states(), self.states().t());
        let mut of_logits = of_states.clone();
        let squares = self.pieces().map(|piece| {
            let dlogits = self.dlogits().columns(piece);
            matmul(&mut of_logits, false, 1.0, dlogits, dlogits.t());
            let both = of_logits.iter().zip(&of_states);
            both.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        });
        // Rounding may leave a little less than nothing; what is no number stays none.
        let sum: f64 = squares.sum();
        if sum < 0.0 { 0.0 } else { sum }
    }

    /// The sum of squares of all of it.
    pub fn squares(&self) -> f64 {
        self.squares
    }

    /// The gradient of the rows in `piece`, `[piece, hidden]`.
    pub fn piece(&self, piece: Range<usize>, out: &mut [f32]) {
        matmul(out, false, 1.0, self.dlogits().columns(piece.clone()).t(), self.states());
        for (token, place) in self.tokens.range(piece.start as u32..piece.end as u32) {
            let to = &mut out[(*token as usize - piece.start) * self.hidden..][..self.hidden];
            to.copy_from_slice(&self.of_tokens[place * self.hidden..][..self.hidden]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Philox;

    #[test]
    fn pieces_and_norm_are_those_of_the_sums() {
        let (vocab, hidden) = (PIECE + 37, 12);
        let mut random = Philox::new(3, 0);
        let mut numbers = |len: usize| (0..len).map(|_| random.next_f32() - 0.5).collect::<Vec<f32>>();
        let mut gradient = HeadGradient::new(vocab, hidden);
        // The second time in what the first has left.
        for _ in 0..2 {
            gradient.clear();
            let mut wanted = vec![0.0f64; vocab * hidden];
            for rows in [7, 3] {
                let (dlogits, states) = (numbers(rows * vocab), numbers(rows * hidden));
                for (dlogits, states) in dlogits.chunks(vocab).zip(states.chunks(hidden)) {
                    for (wanted, dlogit) in wanted.chunks_mut(hidden).zip(dlogits) {
                        let both = wanted.iter_mut().zip(states);
                        both.for_each(|(wanted, state)| *wanted += f64::from(dlogit * state));
                    }
                }
                let mut room = gradient.room(rows);
                room[..rows * vocab].copy_from_slice(&dlogits);
                gradient.push(room, &states);
                let (ids, dy) = ([5, vocab as u32 - 1, 5, PIECE as u32], numbers(4 * hidden));
                for (id, dy) in ids.iter().zip(dy.chunks(hidden)) {
                    let both = wanted[*id as usize * hidden..].iter_mut().zip(dy);
                    both.for_each(|(wanted, dy)| *wanted += f64::from(3.0 * dy));
                }
                gradient.add_embedding(&ids, &dy, 3.0);
            }
            gradient.finish();
            let squares: f64 = wanted.iter().map(|g| g * g).sum();
            assert!((gradient.squares() / squares - 1.0).abs() < 1e-6, "{} {squares}", gradient.squares());
            for piece in gradient.pieces() {
                let mut out = vec![f32::NAN; piece.len() * hidden];
                gradient.piece(piece.clone(), &mut out);
                for (ours, wanted) in out.iter().zip(&wanted[piece.start * hidden..]) {
                    assert!((f64::from(*ours) - wanted).abs() < 1e-5, "{ours} {wanted}");
                }
            }
        }
    }

    #[test]
    fn of_nothing_it_is_zero_and_of_no_number_none() {
        let mut gradient = HeadGradient::new(5, 2);
        gradient.finish();
        assert_eq!(gradient.squares(), 0.0);
        let mut out = [1.0; 10];
        gradient.piece(0..5, &mut out);
        assert_eq!(out, [0.0; 10]);
        let mut room = gradient.room(1);
        room[3] = f32::NAN;
        gradient.push(room, &[1.0, 2.0]);
        gradient.finish();
        assert!(gradient.squares().is_nan());
    }
}
