//! The next token, chosen from the logits of all.
//!
//! In transformers' order, for the token at `position` of the sequence:
//!
//! 1. penalty (Keskar et al. 2019): `l = l / r` where `l ≥ 0`, else `l · r`, for tokens that were
//!    there before;
//! 2. temperature: `x = l / T`;
//! 3. top_k: the tokens with `x` no less than the k-th largest stay (equals of the k-th stay, too);
//! 4. top_p (Holtzman et al. 2019): of `p = softmax(x)` over what stayed, the fewest likeliest
//!    tokens whose sum reaches `top_p` stay (and equals of the last);
//! 5. the draw, by the Gumbel-max rule (Gumbel 1954; Maddison, Tarlow and Minka, "A* sampling",
//!    2014): `argmax x + G(seed, position, token)`, which is a draw from the softmax of what stayed.
//!
//! CPU and GPU choose the same token from the same logits. Both filters are thresholds on `x`, top_p's
//! sum is one of integers (`e^(x − max)` in units of 2⁻⁴⁰), and the noise belongs to the token: no
//! result depends on an order of summation. Exponential and logarithm are our own, made of
//! operations that IEEE 754 rounds exactly.

#[doc(hidden)]
pub mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
mod gumbel;

use crate::ops::math::exp;
pub(crate) use gumbel::gumbel;

/// How a token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Seed of the noise.
    pub seed: u64,
    /// Share of the probability that is kept; 1 for all.
    pub top_p: f64,
    /// Divides the logits.
    pub temperature: f32,
    /// Of tokens that were there before; 1 for none.
    pub penalty: f32,
    /// Likeliest tokens that are kept; 0 for all.
    pub top_k: usize,
    /// Whether there is noise; the likeliest token (the lowest of equals) is taken without.
    pub draw: bool,
}

impl Rule {
    /// The likeliest token.
    pub const GREEDY: Self =
        Self { seed: 0, top_p: 1.0, temperature: 1.0, penalty: 1.0, top_k: 0, draw: false };

    /// Whether it takes the likeliest token, whatever was there before.
    pub fn is_likeliest(&self) -> bool {
        matches!(self, Self { draw: false, penalty: 1.0, temperature: 1.0, .. })
    }

    /// `x` of a logit. Without a sign of zero, and with NaN as the least likely.
    fn scaled(&self, logit: f32) -> f32 {
        let x = logit / self.temperature + 0.0;
        if x.is_nan() { f32::NEG_INFINITY } else { x }
    }
}

/// A number's bits, in an order that is that of the numbers.
fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// `e^(x − max)` in units of 2⁻⁴⁰: sums of 2²³ of them fit.
fn weight(x: f32, max: f32) -> u64 {
    (exp(x - max) * (1u64 << 40) as f32) as u64
}

/// How much weight is wanted of `total`.
fn wanted(total: u64, top_p: f64) -> u64 {
    ((total as f64 * top_p).ceil() as u64).clamp(1, total.max(1))
}
