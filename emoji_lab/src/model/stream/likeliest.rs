//! The likeliest of some tokens.

use crate::ops::math::largest;

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
