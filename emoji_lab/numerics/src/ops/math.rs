//! Small numeric loops written so that the compiler can use vector instructions.

/// A function whose loops are compiled for the widest vectors that the processor has, beside the way that every processor of
/// the target has. The numbers are the same: the operations and their order are what is written, and nothing is fused.
macro_rules! wide {
    ($(#[$about:meta])* $visible:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$about])*
        $visible fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)] // as many as the formula has
            fn plain($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl")]
                #[allow(clippy::too_many_arguments)] // as above
                fn in_512($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)] // as above
                fn in_256($($argument: $type),*) $(-> $result)? {
                    plain($($argument),*)
                }
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                    // SAFETY: the processor has the instructions.
                    return unsafe { in_512($($argument),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { in_256($($argument),*) };
                }
            }
            plain($($argument),*)
        }
    };
}
pub(crate) use wide;

/// How many partial sums a reduction keeps: a fixed number, so that results do not depend on the
/// machine's vector width.
const LANES: usize = 16;

/// `Σ a[i] · b[i]`.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    // Half of them added to the other half, and so on: one after the other, each would wait for the last.
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0] + tail
}

/// `out[i] += scale · x[i]`.
#[inline(always)]
pub(crate) fn axpy(out: &mut [f32], scale: f32, x: &[f32]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o += scale * x;
    }
}

/// e^x to about 2 units in the last place, 0 below −87.3 and e^88.3 above 88.3.
///
/// The classic reduction to 2^n · e^r with |r| ≤ ln 2 / 2 and a polynomial for e^r (Cephes'
/// coefficients, Moshier); without branches or calls, so a loop over it becomes vector code.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let y = x.clamp(-87.3, 88.3);
    let n = (y * std::f32::consts::LOG2_E + MAGIC) - MAGIC;
    let r = y - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let two_n = f32::from_bits((((n as i32) + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { p * two_n }
}

wide! {
    /// The place of the first of the largest, and what it is.
    pub fn largest(logits: &[f32]) -> (Option<usize>, f32) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_exact_one() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            worst = worst.max((exp(x) as f64 / (x as f64).exp() - 1.0).abs());
        }
        assert!(worst < 3e-7, "{worst:.2e}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn dot_counts_the_tail() {
        let a: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&a, &a), (0..37).map(|i| (i * i) as f32).sum::<f32>());
    }
}
