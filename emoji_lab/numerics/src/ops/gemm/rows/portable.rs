//! The product in plain Rust: for processors without AVX2, and what the others are tested against.

use std::array::from_fn;

use super::{Rows, Target};

/// Partial sums of a dot product.
const LANES: usize = 16;

/// Whether two rows of `x` are multiplied with two of `w` at once, which needs 16 registers for the sums
/// and a few more. An x86 processor without AVX has 16 in all.
const TWO: bool = cfg!(not(any(target_arch = "x86", target_arch = "x86_64")));

/// `a · b + c`, in one instruction where every processor of the target has one, else in two: a call of
/// the mathematical library would take a hundred times as long.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) { a.mul_add(b, c) } else { a * b + c }
}

/// The dot products of `X` rows of `x` with `W` of `w`. Written so that the compiler makes vectors of the
/// lanes for the tiles that [`block`] takes, one by one and two by two, and not of anything else.
#[inline(always)]
fn tile<const X: usize, const W: usize>(x: [&[f32]; X], w: [&[f32]; W], k: usize) -> [[f32; W]; X] {
    let (x_parts, w_parts) = (x.map(|x| x[..k].as_chunks::<LANES>()), w.map(|w| w[..k].as_chunks::<LANES>()));
    let mut sums = [[[0.0f32; LANES]; W]; X];
    for at in 0..k / LANES {
        let (x, w) = (x_parts.map(|(parts, _)| &parts[at]), w_parts.map(|(parts, _)| &parts[at]));
        for (x, sums) in x.iter().zip(&mut sums) {
            for (w, sums) in w.iter().zip(sums) {
                let before = *sums;
                *sums = from_fn(|lane| fused(x[lane], w[lane], before[lane]));
            }
        }
    }
    from_fn(|i| {
        from_fn(|j| {
            let rest = x_parts[i].1.iter().zip(w_parts[j].1);
            rest.fold(sums[i][j].iter().sum(), |sum, (x, w)| sum + x * w)
        })
    })
}

/// # Safety
/// As for `Kernels::block`, of all of `w`.
pub(super) unsafe fn block(x: Rows<'_>, w: &[f32], target: &Target) {
    let k = x.k;
    let (xs, outs) = (x, w.len() / k);
    let (x, w) = (|i: usize| xs.row(i), |j: usize| &w[j * k..][..k]);
    let mut j = 0;
    while j < outs {
        let two = TWO && xs.rows > 1 && j + 2 <= outs;
        let mut i = 0;
        while i < xs.rows {
            // SAFETY: the caller says that these elements are there and ours.
            unsafe {
                if two && i + 2 <= xs.rows {
                    put(target, i, j, tile([x(i), x(i + 1)], [w(j), w(j + 1)], k));
                    i += 2;
                } else {
                    put(target, i, j, tile([x(i)], [w(j)], k));
                    if two {
                        put(target, i, j + 1, tile([x(i)], [w(j + 1)], k));
                    }
                    i += 1;
                }
            }
        }
        j += if two { 2 } else { 1 };
    }
}

/// Puts the sums of a tile in their places, from `row` and `column` on.
///
/// # Safety
/// All of the tile must be inside of the product, and nobody else may have these elements.
#[inline(always)]
unsafe fn put<const X: usize, const W: usize>(
    target: &Target,
    row: usize,
    column: usize,
    sums: [[f32; W]; X],
) {
    for (i, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { target.put(row + i, column + j, *sum) };
        }
    }
}
