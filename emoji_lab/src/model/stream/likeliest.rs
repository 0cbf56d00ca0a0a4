//! The likeliest of some tokens.

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
        let mut best = Self::NONE;
        // Most pieces of 64 hold no better one, which the compiler finds out with vectors.
        for (piece, logits) in logits.chunks(64).enumerate() {
            if logits.iter().fold(false, |any, logit| any | (*logit > best.logit)) {
                for (i, logit) in logits.iter().enumerate() {
                    if *logit > best.logit {
                        best = Self { token: Some(first + piece * 64 + i), logit: *logit };
                    }
                }
            }
        }
        best
    }

    /// The likelier of these, and of equals the first.
    pub(super) fn or(self, next: Self) -> Self {
        if next.logit > self.logit { next } else { self }
    }
}
