//! Attention of sixteen tokens a block against the CPU's, over packed sequences.

use super::cuda_tests::{Case, backward_case, forward_case};
use crate::ops::testing::{OnGpu, on_every_gpu};

fn case(t: &mut OnGpu) -> Case {
    let (heads, kv) = t.pick(&[(4, 1), (2, 1), (4, 2), (8, 2), (6, 3)]);
    Case::with_heads(t, heads, kv, 256, 16)
}

#[test]
fn forward() {
    on_every_gpu("attention in tiles, forward", 40, |t| {
        if t.gpu.bf16() {
            let case = case(t);
            forward_case(t, &case, true);
        }
    });
}

#[test]
fn backward() {
    on_every_gpu("attention in tiles, backward", 40, |t| {
        if t.gpu.bf16() {
            let case = case(t);
            backward_case(t, &case, true);
        }
    });
}
