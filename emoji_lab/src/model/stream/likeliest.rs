//! The likeliest of some tokens.

use crate::ops::math::wide;

/// The likeliest of some tokens, the lowest of equals.
#[derive(Debug, Clone, Copy)]
pub(super) struct Likeliest {
    pub(super) token: Option<usize>,
    logit: f32,
}

impl Likeliest {
    pub(super) const NONE: Self = Self { token: None, logit: f32::NEG_INFINITY };

    /// Of the tokens from `first` on, by their logits.
    pub(super) fn of(logits: &[f32], first: usize) -> Self {
        let (token, logit) = largest(logits);
        Self { token: token.map(|token| first + token), logit }
    }

    /// The likelier of these, and of equals the first.
    pub(super) fn or(self, next: Self) -> Self {
        if next.logit > self.logit { next } else { self }
    }
}

wide! {
    /// The place of the first of the largest, and what it is.
    fn largest(logits: &[f32]) -> (Option<usize>, f32) {
        let mut best = (None, f32::NEG_INFINITY);
        // Most pieces of 64 hold no larger one, which the compiler finds out with vectors.
        for (piece, logits) in logits.chunks(64).enumerate() {
            if logits.iter().fold(false, |any, logit| any | (*logit > best.1)) {
                for (i, logit) in logits.iter().enumerate() {
                    if *logit > best.1 {
                        best = (Some(piece * 64 + i), *logit);
                    }
                }
            }
        }
        best
    }
}
