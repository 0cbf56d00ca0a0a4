//! The norm's kernels against the CPU's norm, with what stands around it.

use super::cuda::{Branch, MOST, NormBackward, NormForward, NormWeights, WeightSum};
use crate::gpu::pointer::Compute;
use crate::ops::testing::adapters::{SomeAdapters, split};
use crate::ops::testing::{Bar, Kind, OnGpu, on_every_gpu, tensor, values};

const EPS: f32 = 1e-6;

/// The CPU's norm of rows: y, rstd.
fn norm(x: &[f32], w: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let x = tensor(x, (x.len() / w.len(), w.len()));
    let (y, rstd) = super::forward(&x, &tensor(w, w.len()), EPS.into()).unwrap();
    (values(&y), values(&rstd))
}

fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Tokens and the width of a row. One in four is a few rows at the edges of what the kernels take, of which there is one
/// for every so many values a thread: as wide as three adapters leave room for.
fn sizes(t: &mut OnGpu) -> (usize, usize) {
    if !t.one_in(4) {
        return (t.between(1, 70), 8 * t.between(1, 90));
    }
    let most = t.gpu.limits().shared_bytes / 13 - 512;
    let edges = [1024, 1032, 2048, 2056, 4096, 4104, 8200, MOST];
    let fits: Vec<usize> = edges.into_iter().filter(|width| *width <= most).collect();
    (t.between(1, 9), t.pick(&fits))
}

#[test]
fn forward() {
    on_every_gpu("rms_norm forward", 40, |t| {
        let (tokens, width) = sizes(t);
        let a_block = t.pick(&[1, 2, 4]);
        let tokens = tokens.next_multiple_of(if t.one_in(4) { 1 } else { a_block });
        let adapters = SomeAdapters::random(t, width);
        let tail = adapters.tail();
        let ldy = t.ld(width + tail);
        let branched = t.one_in(2);
        t.sizes((tokens, a_block, width, ldy, branched, adapters.sizes()));
        let (x, branch) = (t.values(tokens * width, 2.0), t.rounded(tokens * width, 3.0));
        let (w, w_post) = (t.values(width, 0.5), t.values(width, 0.5));
        let (x_at, branch_at) = (t.put_f32(&x), t.put_typed(&branch));
        let (w_at, w_post_at) = (t.put_f32(&w), t.put_f32(&w_post));
        let kind = t.kind();
        let stream = t.room::<f32>(tokens, width, width);
        let rstds = [t.room::<f32>(tokens, 1, 1), t.room::<f32>(tokens, 1, 1)];
        let y = t.room::<Compute>(tokens, width + tail, ldy);
        let norm_forward = NormForward {
            x: x_at.ptr(),
            branch: Branch {
                rows: branched.then(|| branch_at.ptr()),
                weight: Some(w_post_at.ptr()),
                rstd: Some(rstds[1].ptr()),
            },
            stream: Some(stream.ptr()),
            weight: w_at.ptr(),
            rstd: rstds[0].ptr(),
            y: y.ptr(),
            step: Some(adapters.step.ptr()),
            adapters: adapters.on_gpu,
            ldy: y.ld(),
            width: width as i32,
            eps: EPS,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { norm_forward.launch_some(&t.gpu, tokens, a_block).unwrap() };
        let mut expected = x;
        if branched {
            let (joined, rstd) = norm(&branch, &w_post);
            expected = sum(&expected, &joined);
            let (ours, our_rstd) = (t.read("stream", &stream), t.read("rstd_post", &rstds[1]));
            t.check("stream", &ours, &expected, width, Bar::of(Kind::F32));
            t.check("rstd_post", &our_rstd, &rstd, 1, Bar::of(Kind::F32));
        } else {
            t.untouched("stream", &stream);
            t.untouched("rstd_post", &rstds[1]);
        }
        let (expected, rstd) = norm(&expected, &w);
        let our_rstd = t.read("rstd", &rstds[0]);
        t.check("rstd", &our_rstd, &rstd, 1, Bar::of(Kind::F32));
        let (ours, u) = split(&t.read("y", &y), width, tail);
        t.check("y", &ours, &expected, width, Bar::of(kind));
        // From our own y: what was rounded before the product is not to be counted here.
        t.check("u", &u, &adapters.u(&ours), tail, Bar::of(kind).at_least(adapters.scale()));
    });
}

#[test]
fn backward() {
    on_every_gpu("rms_norm backward", 40, |t| {
        let (tokens, width) = sizes(t);
        let a_block = t.pick(&[1, 2, 4]);
        let tokens = tokens.next_multiple_of(if t.one_in(4) { 1 } else { a_block });
        let adapters = SomeAdapters::random(t, width);
        let tail = adapters.tail();
        let ldn = t.ld(width + tail);
        let (branched, adds) = (t.one_in(2), t.one_in(2));
        t.sizes((tokens, a_block, width, ldn, branched, adds, adapters.sizes()));
        let n = tokens * width;
        let (x, branch, d_in) = (t.values(n, 2.0), t.rounded(n, 3.0), t.values(n, 1.0));
        let (w, w_post) = (t.values(width, 0.5), t.values(width, 0.5));
        let (rstd, rstd_post) = (norm(&x, &w).1, norm(&branch, &w_post).1);
        let dn = t.values(tokens * (width + tail), 1.0);
        let from = t.put::<f32>(&dn, width + tail, ldn);
        let [x_at, w_at, rstd_at, d_in_at, w_post_at, rstd_post_at] =
            [&x, &w, &rstd, &d_in, &w_post, &rstd_post].map(|v| t.put_f32(v));
        let rows = t.put_typed(&branch);
        let kind = t.kind();
        let d_out = t.room::<f32>(tokens, width, width);
        let d_branch = t.room::<Compute>(tokens, width, width);
        let norm_backward = NormBackward {
            dy: from.ptr(),
            x: x_at.ptr(),
            weight: w_at.ptr(),
            rstd: rstd_at.ptr(),
            d_in: adds.then(|| d_in_at.ptr()),
            d_out: d_out.ptr(),
            branch: Branch {
                rows: branched.then(|| rows.ptr()),
                weight: Some(w_post_at.ptr()),
                rstd: Some(rstd_post_at.ptr()),
            },
            d_branch: Some(d_branch.ptr()),
            step: Some(adapters.step.ptr()),
            adapters: adapters.on_gpu,
            ldy: from.ld(),
            width: width as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { norm_backward.launch_some(&t.gpu, tokens, a_block).unwrap() };
        let shape = (tokens, width);
        let (dy, du) = split(&dn, width, tail);
        let dy = sum(&dy, &adapters.back(&du, tokens));
        let gradient = |dy: &[f32], x: &[f32], w: &[f32], rstd: &[f32]| {
            let (dy, x) = (tensor(dy, shape), tensor(x, shape));
            values(&super::backward(&dy, &x, &tensor(w, width), &tensor(rstd, tokens), None).unwrap())
        };
        let mut expected = gradient(&dy, &x, &w, &rstd);
        if adds {
            expected = sum(&expected, &d_in);
        }
        let ours = t.read("dx", &d_out);
        t.check("dx", &ours, &expected, width, Bar::of(Kind::F32));
        if branched {
            let expected = gradient(&expected, &branch, &w_post, &rstd_post);
            let ours = t.read("d_branch", &d_branch);
            t.check("d_branch", &ours, &expected, width, Bar::of(kind));
        } else {
            t.untouched("d_branch", &d_branch);
        }
    });
}

/// The gradients of two norms' weights, of what was normalised in f32 and in the compute type, or of terms that
/// lie there already; added to an earlier micro-batch's or written over what is there.
#[test]
fn weights() {
    on_every_gpu("rms_norm weights", 40, |t| {
        let (tokens, width) = sizes(t);
        let (first_micro, terms, alone) = (t.one_in(2), t.one_in(3), t.one_in(4));
        let ld = t.ld(width);
        t.sizes((tokens, width, ld, first_micro, terms, alone));
        let step = t.step(0, 0, 1.0, first_micro);
        let (dys, rstds) =
            ([(); 2].map(|()| t.values(tokens * width, 1.0)), [(); 2].map(|()| t.values(tokens, 1.0)));
        let (x, branch) = (t.values(tokens * width, 2.0), t.rounded(tokens * width, 2.0));
        let before = [(); 2].map(|()| if first_micro { vec![f32::NAN; width] } else { t.values(width, 1.0) });
        let dy_at = [t.put::<f32>(&dys[0], width, ld), t.put::<f32>(&dys[1], width, ld)];
        let (x_at, branch_at) = (t.put_f32(&x), t.put_typed(&branch));
        let rstd_at = [t.put_f32(&rstds[0]), t.put_f32(&rstds[1])];
        let dw_at = [t.put_f32(&before[0]), t.put_f32(&before[1])];
        let of = |which: usize| WeightSum {
            dy: dy_at[which].ptr(),
            x: (!terms && which == 0).then(|| x_at.ptr()),
            branch: (!terms && which == 1).then(|| branch_at.ptr()),
            rstd: (!terms).then(|| rstd_at[which].ptr()),
            dw: Some(dw_at[which].ptr()),
            rows: tokens as i32,
            ld: dy_at[which].ld(),
        };
        let of = [of(0), if alone { WeightSum::NONE } else { of(1) }];
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { NormWeights { of, step: step.ptr(), width: width as i32 }.launch(&t.gpu).unwrap() };
        for (which, factor) in [&x, &branch].into_iter().enumerate() {
            if alone && which == 1 {
                continue;
            }
            let mut expected = if first_micro { vec![0.0; width] } else { before[which].clone() };
            if terms {
                dys[which].chunks_exact(width).for_each(|row| {
                    expected.iter_mut().zip(row).for_each(|(to, d)| *to += d);
                });
            } else {
                super::cpu::backward_weight(&dys[which], factor, &rstds[which], &mut expected);
            }
            let ours = t.read("dw", &dw_at[which]);
            t.check("dw", &ours, &expected, width, Bar::of(Kind::F32).at_least(10.0));
        }
    });
}
