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

/// One head of one token, `direction` 1 forward and −1 back.
#[inline]
pub(crate) fn head(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, out: &mut [f32]) {
    let half = x.len() / 2;
    let (out_low, out_high) = out.split_at_mut(half);
    let (low, high) = x.split_at(half);
    for i in 0..half {
        let (c, s) = (cos[i], sin[i] * direction);
        out_low[i] = low[i] * c - high[i] * s;
        out_high[i] = high[i] * c + low[i] * s;
    }
}
