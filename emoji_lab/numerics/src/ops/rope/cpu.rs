use crate::ops::math::wide;

pub(super) fn rotate(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    heads: usize,
    head_dim: usize,
    direction: f32,
) -> Vec<f32> {
    let half = head_dim / 2;
    let mut out = vec![0.0; x.len()];
    let tokens = out.chunks_exact_mut(heads * head_dim).zip(x.chunks_exact(heads * head_dim));
    for ((out, x), (cos, sin)) in tokens.zip(cos.chunks_exact(half).zip(sin.chunks_exact(half))) {
        for (out, x) in out.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
            head(x, cos, sin, direction, out);
        }
    }
    out
}

wide! {
    /// One head of one token, `direction` 1 forward and −1 back.
    pub fn head(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, out: &mut [f32]) {
        let half = x.len() / 2;
        let (out_low, out_high) = out.split_at_mut(half);
        let (low, high) = x.split_at(half);
        let turns = cos.iter().zip(sin);
        for (((low, high), (cos, sin)), (out_low, out_high)) in
            low.iter().zip(high).zip(turns).zip(out_low.iter_mut().zip(out_high))
        {
            let sin = sin * direction;
            *out_low = low * cos - high * sin;
            *out_high = high * cos + low * sin;
        }
    }
}
