//! The noise of the Gumbel-max rule, in the same bits on every device (`kernel.cu` has the same).

use crate::rng::Philox;

/// Streams of a seed from here on are the draws of each position; training has others.
const DRAWS: u64 = 1 << 61;

/// The noise of `token` at `position`: a draw from Gumbel(0, 1).
pub(crate) fn gumbel(seed: u64, position: usize, token: u32) -> f32 {
    let words = Philox::new(seed, DRAWS | position as u64).at(u64::from(token / 4));
    from_word(words[token as usize % 4])
}

/// `−ln E` with `E = −ln(1 − u)`, `u` the middle of the word's 2⁻³² of the unit interval.
fn from_word(word: u32) -> f32 {
    // From the nearer end, where a float is fine enough: the largest noise comes of the smallest E.
    let middle = |word: u32| (word as f32 + 0.5) * (1.0 / (1u64 << 32) as f32);
    let e = if word >> 31 == 0 {
        let u = middle(word);
        let rest = 1.0 - u;
        // ln(1 − u) to the last bits, though 1 − u is rounded (Kahan).
        if rest == 1.0 { u } else { -ln(rest) * (u / (1.0 - rest)) }
    } else {
        -ln(middle(!word))
    };
    -ln(e)
}

/// The natural logarithm of a positive, normal number, to about a unit in the last place (Cephes'
/// reduction and coefficients, Moshier).
fn ln(x: f32) -> f32 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as i32 - 126;
    let half_to_one = f32::from_bits(bits & 0x7f_ffff | 0x3f00_0000);
    let m = if half_to_one < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1;
        half_to_one + half_to_one - 1.0
    } else {
        half_to_one - 1.0
    };
    let e = exponent as f32;
    let z = m * m;
    let p = 7.037_683_6e-2;
    let p = p * m - 1.151_461e-1;
    let p = p * m + 1.167_699_9e-1;
    let p = p * m - 1.242_014_1e-1;
    let p = p * m + 1.424_932_3e-1;
    let p = p * m - 1.666_805_8e-1;
    let p = p * m + 2.000_071_5e-1;
    let p = p * m - 2.499_999_4e-1;
    let p = p * m + 3.333_333e-1;
    let y = p * m * z - e * 2.121_944_4e-4 - z * 0.5;
    m + y + e * 0.693_359_4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ln_is_close_to_the_exact_one() {
        let mut worst = 0.0f64;
        let mut x = 1e-10f32;
        while x < 100.0 {
            let exact = f64::from(x).ln();
            worst = worst.max((f64::from(ln(x)) - exact).abs() / exact.abs().max(1e-3));
            x *= 1.000_1;
        }
        assert!(worst < 3e-7, "{worst:.2e}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn noise_is_the_formula_in_f64() {
        let ends = [0, 1, 2, (1 << 31) - 1, 1 << 31, u32::MAX - 1, u32::MAX];
        let others = (0..20_000u32).map(|i| i.wrapping_mul(2_654_435_769));
        let small = (0..200).map(|i| i * 97);
        let mut worst = 0.0f64;
        for word in ends.into_iter().chain(others).chain(small) {
            let u = (f64::from(word) + 0.5) / f64::from(1 << 16).powi(2);
            let exact = -(-(-u).ln_1p()).ln();
            worst = worst.max((f64::from(from_word(word)) - exact).abs() / exact.abs().max(1.0));
        }
        assert!(worst < 5e-7, "{worst:.2e}");
        // From the largest to the smallest there is.
        assert!(from_word(0) > 22.8 && from_word(u32::MAX) < -3.1);
    }

    #[test]
    fn noise_has_gumbels_mean_and_variance() {
        let n = 40_000;
        let draws: Vec<f64> = (0..n).map(|i| f64::from(gumbel(7, i / 200, i as u32 % 200))).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors: σ = π / √6, and the variance's own is 4.4 / √n.
        assert!((mean - 0.577_216).abs() < 5.0 * 1.2825 / (n as f64).sqrt(), "{mean}");
        assert!((variance - 1.644_934).abs() < 5.0 * 3.5 / (n as f64).sqrt(), "{variance}");
    }

    #[test]
    fn noise_belongs_to_seed_position_and_token() {
        let here = gumbel(1, 2, 3);
        assert_eq!(here, gumbel(1, 2, 3));
        for other in [gumbel(2, 2, 3), gumbel(1, 3, 3), gumbel(1, 2, 4), gumbel(1, 2, 7)] {
            assert_ne!(here, other);
        }
    }
}
