//! Causal attention with grouped key/value heads and an optional sliding window, over packed
//! sequences: `o = softmax(scale · q kᵀ) v` without a `[tokens, tokens]` matrix in memory
//! (the log-sum-exp of every row is kept instead, as in Dao 2023, arXiv:2307.08691).

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;
#[cfg(all(test, feature = "cuda"))]
mod tiles_tests;

use candle_core::{Result, Tensor};

use crate::host;
pub use cpu::attend;

/// One sequence: its queries and its keys, as ranges of the packed tokens.
///
/// Queries are the last tokens of the sequence: in training both ranges are the same, with a
/// key/value cache the keys begin earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First query row.
    pub q_start: usize,
    /// How many queries.
    pub q_len: usize,
    /// First key row.
    pub k_start: usize,
    /// How many keys, at least `q_len`.
    pub k_len: usize,
}

/// What attention computes with.
#[derive(Debug, Clone)]
pub struct AttentionShape<'a> {
    /// The sequences.
    pub segments: &'a [Segment],
    /// Factor on the scores.
    pub scale: f64,
    /// How many keys a query sees, its own among them; `None` for all before it.
    pub window: Option<usize>,
}

/// Attention of `q` `[tokens, heads, head_dim]` on `k` and `v` `[keys, kv_heads, head_dim]`.
///
/// Returns `o` (shape of `q`) and what [`backward`] needs: the log-sum-exp `[tokens, heads]`.
///
/// # Errors
/// If shapes do not fit or there is no version for the tensor's device.
pub fn forward(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape<'_>) -> Result<(Tensor, Tensor)> {
    let sizes = check(q, k, v, shape)?;
    let (o, lse) =
        host::read(q, |q| host::read(k, |k| host::read(v, |v| Ok(cpu::forward(q, k, v, &sizes, shape)))))?;
    Ok((host::tensor(o, q.shape())?, host::tensor(lse, (sizes.tokens, sizes.heads))?))
}

/// The gradients of [`forward`] for `q`, `k` and `v`, given its inputs and both its results.
///
/// # Errors
/// As [`forward`].
pub fn backward(
    d_o: &Tensor,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    (o, lse): (&Tensor, &Tensor),
    shape: &AttentionShape<'_>,
) -> Result<(Tensor, Tensor, Tensor)> {
    let sizes = check(q, k, v, shape)?;
    let gradients = host::read(d_o, |d_o| {
        host::read(o, |o| {
            host::read(lse, |lse| {
                host::read(q, |q| {
                    host::read(k, |k| {
                        host::read(v, |v| Ok(cpu::backward(d_o, q, k, v, o, lse, &sizes, shape)))
                    })
                })
            })
        })
    })?;
    Ok((
        host::tensor(gradients.dq, q.shape())?,
        host::tensor(gradients.dk, k.shape())?,
        host::tensor(gradients.dv, v.shape())?,
    ))
}

/// Sizes read off the tensors.
struct Sizes {
    tokens: usize,
    keys: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape<'_>) -> Result<Sizes> {
    host::require_cpu_f32("attention", q)?;
    let (tokens, heads, head_dim) = q.dims3()?;
    let (keys, kv_heads, k_dim) = k.dims3()?;
    if k.dims() != v.dims() || k_dim != head_dim || kv_heads == 0 || heads % kv_heads != 0 {
        candle_core::bail!("attention: q {:?}, k {:?}, v {:?} do not fit", q.dims(), k.dims(), v.dims())
    }
    for s in shape.segments {
        if s.q_len > s.k_len || s.q_start + s.q_len > tokens || s.k_start + s.k_len > keys {
            candle_core::bail!("attention: {s:?} is outside {tokens} queries and {keys} keys")
        }
    }
    if shape.window == Some(0) {
        candle_core::bail!("attention: a window of 0 tokens")
    }
    Ok(Sizes { tokens, keys, heads, kv_heads, head_dim })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    fn packed(lengths: &[usize]) -> Vec<Segment> {
        let mut start = 0;
        let segment = |&len: &usize| {
            let s = Segment { q_start: start, q_len: len, k_start: start, k_len: len };
            start += len;
            s
        };
        lengths.iter().map(segment).collect()
    }

    /// The textbook form, one score matrix a head.
    fn reference(q: &Tensor, k: &Tensor, v: &Tensor, shape: &AttentionShape<'_>) -> Result<Tensor> {
        let (_, heads, _) = q.dims3()?;
        let group = heads / k.dim(1)?;
        let mut outs = vec![];
        for s in shape.segments {
            let mut per_head = vec![];
            for h in 0..heads {
                let part =
                    |t: &Tensor, head, start, len| t.narrow(0, start, len)?.narrow(1, head, 1)?.squeeze(1);
                let (q, k, v) = (
                    part(q, h, s.q_start, s.q_len)?,
                    part(k, h / group, s.k_start, s.k_len)?,
                    part(v, h / group, s.k_start, s.k_len)?,
                );
                let mask: Vec<f32> = (0..s.q_len)
                    .flat_map(|i| (0..s.k_len).map(move |j| (i + s.k_len - s.q_len, j)))
                    .map(|(i, j)| j <= i && shape.window.is_none_or(|w| i - j < w))
                    .map(|seen| if seen { 0.0 } else { f32::NEG_INFINITY })
                    .collect();
                let mask = host::tensor(mask, (s.q_len, s.k_len))?;
                let scores = ((q.contiguous()?.matmul(&k.t()?.contiguous()?)? * shape.scale)? + mask)?;
                let p = candle_nn::ops::softmax(&scores, 1)?;
                per_head.push(p.matmul(&v.contiguous()?)?.unsqueeze(1)?);
            }
            outs.push(Tensor::cat(&per_head, 1)?);
        }
        Tensor::cat(&outs, 0)
    }

    #[test]
    fn agrees_with_the_textbook_form_and_with_finite_differences() -> Result<()> {
        for (lengths, heads, kv_heads, dim, window) in [
            (&[5usize, 1, 7][..], 4, 2, 3, None),
            (&[9, 4], 2, 1, 5, Some(3)),
            (&[6], 3, 3, 2, Some(1)),
            (&[4], 1, 1, 17, Some(100)),
        ] {
            let tokens: usize = lengths.iter().sum();
            let segments = packed(lengths);
            let shape = AttentionShape { segments: &segments, scale: 0.7, window };
            let q = random(1, (tokens, heads, dim))?;
            let k = random(2, (tokens, kv_heads, dim))?;
            let v = random(3, (tokens, kv_heads, dim))?;
            let g = random(4, (tokens, heads, dim))?;
            let (o, lse) = forward(&q, &k, &v, &shape)?;
            let error = (&o - reference(&q, &k, &v, &shape)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(error < 1e-6, "{error}");
            let (dq, dk, dv) = backward(&g, (&q, &k, &v), (&o, &lse), &shape)?;
            let loss = |q: &Tensor, k: &Tensor, v: &Tensor| (forward(q, k, v, &shape)?.0 * &g)?.sum_all();
            Check::new("q").run(&q, &dq, |q| loss(q, &k, &v))?;
            Check::new("k").run(&k, &dk, |k| loss(&q, k, &v))?;
            Check::new("v").run(&v, &dv, |v| loss(&q, &k, v))?;
        }
        Ok(())
    }

    #[test]
    fn queries_may_be_the_end_of_longer_keys() -> Result<()> {
        let (k, v) = (random(2, (9, 1, 4))?, random(3, (9, 1, 4))?);
        let q = random(1, (9, 2, 4))?;
        for window in [None, Some(4)] {
            let whole = packed(&[9]);
            let shape = AttentionShape { segments: &whole, scale: 1.0, window };
            let (o, _) = forward(&q, &k, &v, &shape)?;
            let tail = [Segment { q_start: 0, q_len: 2, k_start: 0, k_len: 9 }];
            let shape = AttentionShape { segments: &tail, scale: 1.0, window };
            let (end, _) = forward(&q.narrow(0, 7, 2)?, &k, &v, &shape)?;
            let error = (o.narrow(0, 7, 2)? - end)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert_eq!(error, 0.0);
        }
        Ok(())
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors() -> Result<()> {
        let t = random(1, (3, 2, 4))?;
        let far = [Segment { q_start: 1, q_len: 3, k_start: 0, k_len: 3 }];
        assert!(forward(&t, &t, &t, &AttentionShape { segments: &far, scale: 1.0, window: None }).is_err());
        assert!(forward(&t, &t, &t, &AttentionShape { segments: &[], scale: 1.0, window: Some(0) }).is_err());
        Ok(())
    }
}
