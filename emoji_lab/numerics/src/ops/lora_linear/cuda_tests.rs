//! The kernels of the group of linear layers against the CPU's: masks bit by bit, NF4 byte by byte,
//! gradients of adapters, and the whole as a matrix product.

use super::cuda::{
    AdapterGradient, AdapterGradients, Adapters, AdaptersBack, AdaptersDown, DropoutFactors, Unpack,
    UnpackWeights,
};
use super::{Dropout, Gradients, Lora, Weight};
use crate::gpu::pointer::{Compute, DevicePtr};
use crate::ops::attention::cuda::{AttentionDelta, AttentionSizes, parts};
use crate::ops::rms_norm::cuda::{Branch, NormForward};
use crate::ops::step::Step;
use crate::ops::testing::adapters::{SomeAdapters, split};
use crate::ops::testing::{Bar, Guarded, Kind, OnGpu, Plain, Product, matrix, on_every_gpu, tensor, values};
use crate::quant::Nf4Tensor;

/// `dropout` of all ones.
fn mask(dropout: &Dropout, count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    dropout.apply(0, &vec![1.0; count], &mut out);
    out
}

fn some_dropout(t: &mut OnGpu) -> (Dropout, Plain<Step>, usize) {
    let (seed, pass) = (t.random.below(u64::MAX), t.random.below(1 << 40));
    let (linear, p) = (t.between(0, 300), t.pick(&[0.05, 0.1, 0.5, 0.9, 1.0 / 65_536.0]));
    let dropout = Dropout { p, seed, stream: pass << 16 | linear as u64 };
    (dropout, t.step(seed, pass, 1.0, true), linear)
}

/// One adapter, with this A `[rank, width]`.
fn adapter(a: DevicePtr<f32>, rank: usize, linear: usize, dropout: &Dropout) -> Adapters {
    Adapters {
        a: [Some(a), None, None],
        linear: [linear as i32, 0, 0],
        count: 1,
        rank: rank as i32,
        padded: rank.next_multiple_of(8) as i32,
        dropout: DropoutFactors::new(dropout.p),
    }
}

/// Ones flow back through an A of ones: what arrives at each element is its mask, times its factor.
#[test]
fn masks_on_the_way_back() {
    on_every_gpu("dropout masks, adapters_back", 30, |t| {
        let (tokens, heads, dim) = (t.between(1, 50), t.between(1, 8), 8 * t.between(1, 32));
        let width = heads * dim;
        let (dropout, step, linear) = some_dropout(t);
        t.sizes((tokens, width, dropout));
        let a = t.put_f32(&vec![1.0; width]);
        let adapters = adapter(a.ptr(), 1, linear, &dropout);
        let row: Vec<f32> = (0..width + 8).map(|i| f32::from(i == width)).collect();
        let ldy = t.ld(width + 8);
        let d_y = t.put::<f32>(&row.repeat(tokens), width + 8, ldy);
        let y = t.put::<Compute>(&vec![0.0; tokens * width], width, ldy);
        let delta = t.room::<f32>(tokens, heads, heads);
        let launch = AttentionDelta {
            d_y: d_y.ptr(),
            y: y.ptr(),
            delta: delta.ptr(),
            step: step.ptr(),
            adapters,
            sizes: AttentionSizes {
                heads: heads as i32,
                kv_heads: heads as i32,
                dim: dim as i32,
                window: 0,
                scale: 1.0,
            },
            ldy: y.ld(),
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { launch.launch(&t.gpu, tokens, parts(heads)).unwrap() };
        let ours = t.read("d_y", &d_y);
        let ours: Vec<f32> = ours.chunks_exact(width + 8).flat_map(|row| &row[..width]).copied().collect();
        t.check("mask", &ours, &mask(&dropout, tokens * width), width, Bar::EXACT);
    });
}

/// Rows of ±1 through an A that picks out one element each: u is the mask, times sign and factor.
#[test]
fn masks_on_the_way_down() {
    on_every_gpu("dropout masks, adapters_down", 30, |t| {
        let (tokens, width) = (t.between(1, 50), 8 * t.between(1, 60));
        let (dropout, step, linear) = some_dropout(t);
        let rank = width.min(t.between(1, 64));
        let picked: Vec<usize> = (0..rank).map(|_| t.between(0, width - 1)).collect();
        t.sizes((tokens, width, rank, dropout));
        let mut a = vec![0.0; rank * width];
        picked.iter().enumerate().for_each(|(j, i)| a[j * width + i] = 1.0);
        let a = t.put_f32(&a);
        let adapters = adapter(a.ptr(), rank, linear, &dropout);
        let tail = rank.next_multiple_of(8);
        // A norm with a weight of zeros leaves the signs.
        let x: Vec<f32> = t.values(tokens * width, 1.0).iter().map(|v| v.signum()).collect();
        let (x_at, w) = (t.put_f32(&x), t.put_f32(&vec![0.0; width]));
        let ldy = t.ld(width + tail);
        let (y, rstd) = (t.room::<Compute>(tokens, width + tail, ldy), t.room::<f32>(tokens, 1, 1));
        let norm = NormForward {
            x: x_at.ptr(),
            branch: Branch::NONE,
            stream: None,
            weight: w.ptr(),
            rstd: rstd.ptr(),
            y: y.ptr(),
            step: Some(step.ptr()),
            adapters,
            ldy: y.ld(),
            width: width as i32,
            eps: 0.0,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { norm.launch(&t.gpu, tokens).unwrap() };
        let kept = mask(&dropout, tokens * width);
        let mut expected = vec![0.0; tokens * tail];
        for token in 0..tokens {
            for (j, i) in picked.iter().enumerate() {
                let at = token * width + i;
                expected[token * tail + j] = kept[at] * x[at];
            }
        }
        let ours = t.read("u", &y);
        let ours: Vec<f32> = ours.chunks_exact(width + tail).flat_map(|row| &row[width..]).copied().collect();
        let expected = t.round(expected);
        t.check("mask", &ours, &expected, tail, Bar::EXACT);
    });
}

/// u and what flows back, in launches of their own, as the kernels around the products make them.
#[test]
fn adapters_of_many_tokens() {
    on_every_gpu("adapters_down_tiled, adapters_back_tiled", 40, |t| {
        let (tokens, width) = (t.between(1, 90), 8 * t.between(1, 200));
        let some = SomeAdapters::random(t, width);
        let tail = some.tail();
        t.sizes((tokens, width, some.sizes()));
        if tail == 0 {
            return;
        }
        let x = t.rounded(tokens * width, 1.0);
        let ldy = t.ld((width + tail).next_multiple_of(8)).next_multiple_of(8);
        // What is behind a row is written, the row itself stays.
        let rows: Vec<f32> = x.chunks_exact(width).flat_map(|row| [row, &vec![0.0; tail]].concat()).collect();
        let y = t.put::<Compute>(&rows, width + tail, ldy);
        let (step, adapters) = (Some(some.step.ptr()), some.on_gpu);
        let down = AdaptersDown {
            y: y.ptr(),
            step,
            adapters,
            tokens: tokens as i32,
            ld: y.ld(),
            width: width as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { down.launch(&t.gpu).unwrap() };
        let (ours_x, ours_u) = split(&t.read("y", &y), width, tail);
        let kind = t.kind();
        t.check("x", &ours_x, &x, width, Bar::EXACT);
        t.check("u", &ours_u, &some.u(&x), tail, Bar::of(kind).at_least(some.scale()));

        let dx = t.values(tokens * (width + tail), 1.0);
        let dx_at = t.put::<f32>(&dx, width + tail, ldy);
        let back = AdaptersBack {
            dx: dx_at.ptr(),
            step,
            adapters,
            tokens: tokens as i32,
            ld: dx_at.ld(),
            width: width as i32,
        };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { back.launch(&t.gpu).unwrap() };
        let (through, du) = split(&dx, width, tail);
        let whole: Vec<f32> = through.iter().zip(some.back(&du, tokens)).map(|(a, b)| a + b).collect();
        let (ours, ours_du) = split(&t.read("dx", &dx_at), width, tail);
        t.check("dx", &ours, &whole, width, Bar::of(Kind::F32));
        t.check("du", &ours_du, &du, tail, Bar::EXACT);
    });
}

#[test]
fn unpacking() {
    on_every_gpu("unpack_weights", 30, |t| {
        let kind = t.kind();
        let (count, width) = (t.between(1, 4), 8 * t.between(1, 40));
        let rank = t.between(1, 40);
        let padded = rank.next_multiple_of(8);
        // A linear group's matrix: layers one below the other, each B in columns of its own.
        let tail = if t.one_in(4) { 0 } else { count * padded };
        let (ld, block_size) = (width + tail, t.pick(&[64usize, 64, 128, 8]));
        let rows: Vec<usize> = (0..count).map(|_| t.between(1, 70)).collect();
        t.sizes((&rows, width, rank, tail, block_size));
        let all: usize = rows.iter().sum();
        let whole = t.room::<Compute>(all, ld, ld);
        let mut expected = vec![0xffu8; 0];
        let (mut table, mut keep, mut first, mut units) = (vec![], Vec::<Guarded<f32>>::new(), 0, 0);
        let mut packed_on_card: Vec<Plain<u8>> = vec![];
        for (which, &rows) in rows.iter().enumerate() {
            let scale = t.pick(&[1.0f32, 2.0, 0.3]);
            let weight = tensor(&t.values(rows * width, 0.2), (rows, width));
            let nf4 = Nf4Tensor::quantize(&weight, block_size).unwrap();
            // A layer in full precision stays as it is in its place.
            let quantized = !t.one_in(5);
            let b = if tail > 0 && !t.one_in(5) { Some(t.values(rows * rank, 0.5)) } else { None };
            let b_at = width + which * padded;
            let mut entry = Unpack {
                packed: None,
                absmax: None,
                out: whole.row(first),
                b: None,
                rows: rows as i32,
                width: width as i32,
                ld: ld as i32,
                block_size: block_size as i32,
                b_at: b_at as i32,
                rank: rank as i32,
                scale,
                padding: 0,
            };
            if quantized {
                packed_on_card.push(t.plain(nf4.packed()));
                entry.packed = packed_on_card.last().map(Plain::ptr);
                keep.push(t.put_f32(nf4.absmax()));
                entry.absmax = keep.last().map(Guarded::ptr);
            }
            if let Some(b) = &b {
                keep.push(t.put_f32(b));
                entry.b = keep.last().map(Guarded::ptr);
            }
            let values = nf4.dequantize_vec();
            for row in 0..rows {
                match quantized {
                    true => expected.extend(kind.encode(&values[row * width..][..width])),
                    false => expected.extend(vec![0xff; width * kind.size()]),
                }
                let mut beside = vec![0.0; tail];
                if let Some(b) = &b {
                    let b = b[row * rank..][..rank].iter().map(|b| b * scale);
                    beside[b_at - width..].iter_mut().zip(b).for_each(|(to, b)| *to = b);
                }
                expected.extend(kind.encode(&beside));
            }
            units = units.max(rows * (width / 8 + tail));
            first += rows;
            table.push(entry);
        }
        let (table, count) = (t.plain(&table), table.len());
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { UnpackWeights { layers: table.ptr() }.launch(&t.gpu, count, units).unwrap() };
        let ours = t.read_bytes("matrix", &whole);
        if let Some(at) = ours.iter().zip(&expected).position(|(a, b)| a != b) {
            let (row, column) = (at / (ld * kind.size()), at % (ld * kind.size()) / kind.size());
            t.fail(format!("[{row}, {column}] is {:02x}.., not {:02x}..", ours[at], expected[at]));
        }
        if ours.len() != expected.len() {
            t.fail(format!("{} bytes, not {}", ours.len(), expected.len()));
        }
    });
}

/// One adapter of a group.
struct Layer {
    outs: usize,
    linear: usize,
    du: Vec<f32>,
    da: Guarded<f32>,
    db: Guarded<f32>,
    before: (Vec<f32>, Vec<f32>),
}

#[test]
fn gradients_of_adapters() {
    on_every_gpu("adapter_gradients", 40, |t| {
        let (tokens, ins) =
            (if t.one_in(4) { t.between(131, 400) } else { t.between(1, 130) }, 8 * t.between(1, 40));
        let rank = match t.between(0, 5) {
            0 => t.between(65, 200),
            1 | 2 => t.between(17, 64),
            _ => t.between(1, 16),
        };
        let (count, padded, first_micro) = (t.between(1, 3), rank.next_multiple_of(8), t.one_in(2));
        let (dropout, _, _) = some_dropout(t);
        let dropout = if t.one_in(3) { None } else { Some(dropout) };
        let (seed, pass) = (t.random.below(1 << 50), t.random.below(1 << 30));
        let step = t.step(seed, pass, 1.0, first_micro);
        let tail = count * padded;
        let (ldx, ldu) = (t.ld(ins + tail), t.ld(ins + tail));
        let outs: Vec<usize> = (0..count).map(|_| t.between(1, 150)).collect();
        let all_outs = outs.iter().sum::<usize>();
        let ldy = t.ld(all_outs);
        let scale = t.pick(&[1.0f32, 2.0, 0.25]);
        t.sizes((tokens, ins, rank, &outs, first_micro, dropout));
        let x = t.rounded(tokens * ins, 1.0);
        let u = t.rounded(tokens * tail, 1.0);
        let dy = t.rounded(tokens * all_outs, 1.0);
        let du = t.values(tokens * tail, 1.0);
        // u lies after x, du after dx.
        let beside = |a: &[f32], b: &[f32]| -> Vec<f32> {
            let rows = a.chunks_exact(ins).zip(b.chunks_exact(tail));
            rows.flat_map(|(a, b)| a.iter().chain(b).copied().collect::<Vec<_>>()).collect()
        };
        let x_at = t.put::<Compute>(&beside(&x, &u), ins + tail, ldx);
        let du_at = t.put::<f32>(&beside(&vec![f32::NAN; tokens * ins], &du), ins + tail, ldu);
        let dy_at = t.put::<Compute>(&dy, all_outs, ldy);
        let (mut table, mut layers, mut first) = (vec![], Vec::<Layer>::new(), 0);
        for (which, &outs) in outs.iter().enumerate() {
            let linear = t.between(0, 125);
            let before = (t.values(rank * ins, 1.0), t.values(outs * rank, 1.0));
            // The first micro-batch finds what is left from before, here NaN.
            let (da, db) = match first_micro {
                true => (t.room::<f32>(rank, ins, ins), t.room::<f32>(outs, rank, rank)),
                false => (t.put::<f32>(&before.0, ins, ins), t.put::<f32>(&before.1, rank, rank)),
            };
            let at = ins + which * padded;
            table.push(AdapterGradient {
                x: x_at.ptr(),
                u: x_at.column(at),
                dy: dy_at.column(first),
                du: du_at.column(at),
                da: da.ptr(),
                db: db.ptr(),
                ins: ins as i32,
                outs: outs as i32,
                rank: rank as i32,
                ldx: ldx as i32,
                ldy: ldy as i32,
                ldu: ldu as i32,
                linear: linear as i32,
                scale,
            });
            let column = |rows: &[f32], width: usize, at: usize, count: usize| -> Vec<f32> {
                rows.chunks_exact(width).flat_map(|row| &row[at..at + count]).copied().collect()
            };
            let du = column(&du, tail, which * padded, rank);
            layers.push(Layer { outs, linear, du, da, db, before });
            first += outs;
        }
        let factors = dropout.map_or(DropoutFactors::NONE, |dropout| DropoutFactors::new(dropout.p));
        let tiles = table.iter().map(AdapterGradient::tiles).sum();
        let table = t.plain(&table);
        let gradients = AdapterGradients {
            adapters: table.ptr(),
            step: step.ptr(),
            count: layers.len() as i32,
            tokens: tokens as i32,
            dropout: factors,
        };
        let many = t.one_in(2);
        // SAFETY: all buffers have the sizes they are given with.
        unsafe { gradients.launch(&t.gpu, tiles, rank, many).unwrap() };
        first = 0;
        for (which, layer) in layers.iter().enumerate() {
            let outs = layer.outs;
            let dropout = dropout.map(|d| Dropout { p: d.p, seed, stream: pass << 16 | layer.linear as u64 });
            let rows = |all: &[f32], width: usize, at: usize, count: usize| -> Vec<f32> {
                all.chunks_exact(width).flat_map(|row| &row[at..at + count]).copied().collect()
            };
            let x = tensor(&x, (tokens, ins));
            // dA: the op with an identity for B, whose du is the one given.
            let a = tensor(&vec![0.0; rank * ins], (rank, ins));
            let identity: Vec<f32> = (0..rank * rank).map(|i| f32::from(i / rank == i % rank)).collect();
            let b = tensor(&identity, (rank, rank));
            let lora = Lora { a: &a, b: &b, scale: 1.0, dropout };
            let before = |v: &[f32]| if first_micro { vec![0.0; v.len()] } else { v.to_vec() };
            let da = tensor(&before(&layer.before.0), (rank, ins));
            let gradients = Gradients { da: Some(&da), ..Gradients::default() };
            let w = Weight::from(tensor(&vec![0.0; rank * ins], (rank, ins)));
            let nothing = tensor(&vec![0.0; tokens * rank], (tokens, rank));
            let du = tensor(&layer.du, (tokens, rank));
            super::backward(&du, &x, Some(&nothing), &w, Some(&lora), gradients).unwrap();
            // dB: with the u that is given.
            let b = tensor(&vec![0.0; outs * rank], (outs, rank));
            let lora = Lora { a: &a, b: &b, scale: scale.into(), dropout };
            let db = tensor(&before(&layer.before.1), (outs, rank));
            let gradients = Gradients { db: Some(&db), ..Gradients::default() };
            let w = Weight::from(tensor(&vec![0.0; outs * ins], (outs, ins)));
            let u = tensor(&rows(&u, tail, which * padded, rank), (tokens, rank));
            let dy = tensor(&rows(&dy, all_outs, first, outs), (tokens, outs));
            super::backward(&dy, &x, Some(&u), &w, Some(&lora), gradients).unwrap();
            let (our_da, our_db) = (t.read("dA", &layer.da), t.read("dB", &layer.db));
            t.check("dA", &our_da, &values(&da), ins, Bar::of(Kind::F32).at_least(1.0));
            t.check("dB", &our_db, &values(&db), rank, Bar::of(Kind::F32).at_least(1.0));
            first += outs;
        }
    });
}

/// [x | u] times [W | scale · B], forwards and back, as the passes call it.
#[test]
fn the_whole_layer() {
    on_every_gpu("lora_linear", 30, |t| {
        let (tokens, ins, outs) = (t.between(1, 70), 8 * t.between(1, 40), 8 * t.between(1, 40));
        let rank = t.between(1, 64);
        let (kind, tail) = (t.kind(), rank.next_multiple_of(8));
        let ld = ins + tail;
        let scale = t.pick(&[1.0f32, 2.0]);
        t.sizes((tokens, ins, outs, rank));
        let (x, dy) = (t.rounded(tokens * ins, 1.0), t.rounded(tokens * outs, 1.0));
        let (a, b) = (t.values(rank * ins, 0.1), t.rounded(outs * rank, 0.1));
        let weight = tensor(&t.values(outs * ins, 0.2), (outs, ins));
        let nf4 = Nf4Tensor::quantize(&weight, 64).unwrap();
        // The CPU computes with what the compute type holds of W.
        let w = tensor(&t.round(nf4.dequantize_vec()), (outs, ins));
        let (a, b_t) = (tensor(&a, (rank, ins)), tensor(&b, (outs, rank)));
        let lora = Lora { a: &a, b: &b_t, scale: scale.into(), dropout: None };
        let (x_t, weight) = (tensor(&x, (tokens, ins)), Weight::from(w));
        let (y, u) = super::forward(&x_t, &weight, Some(&lora)).unwrap();
        let u = t.round(values(&u.unwrap()));

        let whole = t.room::<Compute>(outs, ld, ld);
        let (packed, absmax, b_at) = (t.plain(nf4.packed()), t.put_f32(nf4.absmax()), t.put_f32(&b));
        let entry = Unpack {
            packed: Some(packed.ptr()),
            absmax: Some(absmax.ptr()),
            out: whole.ptr(),
            b: Some(b_at.ptr()),
            rows: outs as i32,
            width: ins as i32,
            ld: ld as i32,
            block_size: 64,
            b_at: ins as i32,
            rank: rank as i32,
            scale,
            padding: 0,
        };
        let table = t.plain(&[entry]);
        let mut rows = vec![0.0; tokens * ld];
        for token in 0..tokens {
            rows[token * ld..][..ins].copy_from_slice(&x[token * ins..][..ins]);
            rows[token * ld + ins..][..rank].copy_from_slice(&u[token * rank..][..rank]);
        }
        let (x_at, dy_at) = (t.put_typed(&rows), t.put_typed(&dy));
        let (y_at, dx_at) = (t.room::<Compute>(tokens, outs, outs), t.room::<f32>(tokens, ld, ld));
        let w = matrix(whole.ptr(), ld);
        let forward = Product::Forward { x: matrix(x_at.ptr(), ld), w, y: matrix(y_at.ptr(), outs) };
        let back = Product::Back { dy: matrix(dy_at.ptr(), outs), w, dx: matrix(dx_at.ptr(), ld) };
        let unpack = UnpackWeights { layers: table.ptr() };
        // SAFETY: all buffers have the sizes they are given with.
        unsafe {
            unpack.launch(&t.gpu, 1, outs * (ins / 8 + tail)).unwrap();
            t.product((tokens, outs, ld), forward);
            t.product((tokens, ld, outs), back);
        }
        // u is rounded in between: a share of what the adapter adds, which is less than the whole.
        let bar = match kind {
            Kind::Bf16 => Bar::of(kind).of_largest(1.0 / 256.0),
            _ => Bar::of(kind),
        };
        let ours = t.read("y", &y_at);
        t.check("y", &ours, &values(&y), outs, bar);
        let dx =
            super::backward(&tensor(&dy, (tokens, outs)), &x_t, None, &weight, None, Gradients::default());
        let ours = t.read("dx", &dx_at);
        let through: Vec<f32> = ours.chunks_exact(ld).flat_map(|row| &row[..ins]).copied().collect();
        t.check("dx", &through, &values(&dx.unwrap()), ins, Bar::of(Kind::F32));
        // du = scale · dy B, and the padding is zero.
        let b = Weight::from(tensor(&t.round(b.iter().map(|b| b * scale).collect()), (outs, rank)));
        let nothing = tensor(&vec![0.0; tokens * rank], (tokens, rank));
        let dy = tensor(&dy, (tokens, outs));
        let du = super::backward(&dy, &nothing, None, &b, None, Gradients::default()).unwrap();
        let mut expected = vec![0.0; tokens * tail];
        for (token, du) in values(&du).chunks_exact(rank).enumerate() {
            expected[token * tail..][..rank].copy_from_slice(du);
        }
        let behind: Vec<f32> = ours.chunks_exact(ld).flat_map(|row| &row[ins..]).copied().collect();
        t.check("du", &behind, &expected, tail, Bar::of(Kind::F32));
    });
}
