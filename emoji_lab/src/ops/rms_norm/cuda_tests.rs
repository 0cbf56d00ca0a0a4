//! The norm's kernels against the CPU's norm, with what stands around it.

use super::cuda::{Branch, NormBackward, NormForward};
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

fn sizes(t: &mut OnGpu) -> (usize, usize) {
    (t.between(1, 70), 8 * t.between(1, 90))
}

#[test]
fn forward() {
    on_every_gpu("rms_norm forward", 40, |t| {
        let (tokens, width) = sizes(t);
        let adapters = SomeAdapters::random(t, width);
        let tail = adapters.tail();
        let ldy = t.ld(width + tail);
        let branched = t.one_in(2);
        t.sizes((tokens, width, ldy, branched, adapters.sizes()));
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
        unsafe { norm_forward.launch(&t.gpu, tokens).unwrap() };
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
        let adapters = SomeAdapters::random(t, width);
        let tail = adapters.tail();
        let ldn = t.ld(width + tail);
        let (branched, adds) = (t.one_in(2), t.one_in(2));
        t.sizes((tokens, width, ldn, branched, adds, adapters.sizes()));
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
        unsafe { norm_backward.launch(&t.gpu, tokens).unwrap() };
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
