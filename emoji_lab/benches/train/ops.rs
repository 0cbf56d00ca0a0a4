//! Where a step's time goes on the CPU: each op at the real model's sizes, beside its floor.

use std::hint::black_box;
use std::time::Instant;

use candle_core::{Device, Tensor};
use emoji_lab::ops::adamw::{self, AdamW};
use emoji_lab::ops::linear_cross_entropy::loss_and_gradient;
use emoji_lab::ops::lora_linear::{Dropout, Gradients, Lora, Weight, backward, forward};
use emoji_lab::ops::{geglu, rms_norm};
use emoji_lab::prelude::*;
use emoji_lab::rng::Philox;
use rayon::prelude::*;

/// Gemma 3 270M's sizes; tokens of a batch of 4 of Google's rows.
const TOKENS: usize = 116;
const HIDDEN: usize = 640;
const INNER: usize = 2048;
const VOCAB: usize = 262_144;
const LAYERS: usize = 18;

/// Milliseconds of `work`: the median of seven runs after one for nothing.
fn milliseconds<T>(mut work: impl FnMut() -> Result<T>) -> Result<f64> {
    work()?;
    let mut times = vec![];
    for _ in 0..7 {
        let started = Instant::now();
        drop(work()?);
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn random(shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::rand(-1f32, 1.0, shape, &Device::Cpu)?)
}

/// The table; floors are the larger of arithmetic at the rate of the machine's best product and of bytes at the
/// rate at which it reads.
pub(crate) fn table() -> Result<Table> {
    let large = 2048;
    let (x, w) = (random((large, large))?, Weight::from(random((large, large))?));
    let best = milliseconds(|| Ok(forward(&x, &w, None)?))?;
    let flops = 2.0 * (large as f64).powi(3) / best;
    let numbers = vec![1u64; VOCAB * HIDDEN / 2];
    let sum =
        || numbers.par_chunks(1 << 16).map(|part| part.iter().fold(0, |all, one| all ^ one)).sum::<u64>();
    let reading = milliseconds(|| {
        black_box(sum());
        Ok(())
    })?;
    let bytes = 4.0 * (VOCAB * HIDDEN) as f64 / reading;
    let title = format!(
        "Ops of a step at {TOKENS} tokens, {} threads: products {:.0} GFLOP/s at best, memory read at {:.1} GB/s",
        rayon::current_num_threads(),
        flops / 1e6,
        bytes / 1e6,
    );
    let mut table = Table::new(title).column("op", Align::Left);
    for name in ["times a step", "ms each", "floor", "ms a step", "GFLOP/s"] {
        table = table.column(name, Align::Right);
    }
    let row = |table: Table, name: &str, times: usize, gflop: f64, moved: f64, ms: f64| {
        let floor = (gflop * 1e9 / flops).max(moved / bytes);
        let rate = if gflop > 0.0 { format!("{:.0}", gflop / ms * 1e3) } else { String::new() };
        let cells = [times.to_string(), format!("{ms:.3}"), format!("{floor:.3}")];
        table.row(
            [name.to_string()].into_iter().chain(cells).chain([format!("{:.1}", ms * times as f64), rate]),
        )
    };

    let dropout = Some(Dropout { p: 0.05, seed: 1, stream: 2 });
    let linears =
        [("q_proj", 1024, HIDDEN, 1), ("k_proj, v_proj", 256, HIDDEN, 2), ("o_proj", HIDDEN, 1024, 1)];
    let more = [("gate_proj, up_proj", INNER, HIDDEN, 2), ("down_proj", HIDDEN, INNER, 1)];
    for (name, outs, ins, each) in linears.into_iter().chain(more) {
        let (x, dy, w) =
            (random((TOKENS, ins))?, random((TOKENS, outs))?, Weight::from(random((outs, ins))?));
        let (a, b) = (random((16, ins))?, random((outs, 16))?);
        let (da, db) = (a.zeros_like()?, b.zeros_like()?);
        let lora = Lora { a: &a, b: &b, scale: 2.0, dropout };
        let gflop = 2e-9 * (TOKENS * outs * ins) as f64;
        let (_, u) = forward(&x, &w, Some(&lora))?;
        let ms = milliseconds(|| Ok(forward(&x, &w, Some(&lora))?))?;
        table = row(table, &format!("{name}, forward"), each * LAYERS, gflop, 4.0 * (outs * ins) as f64, ms);
        let gradients = || Gradients { dw: None, da: Some(&da), db: Some(&db) };
        let ms = milliseconds(|| Ok(backward(&dy, &x, u.as_ref(), &w, Some(&lora), gradients())?))?;
        table = row(table, &format!("{name}, backward"), each * LAYERS, gflop, 4.0 * (outs * ins) as f64, ms);
    }
    let (x, w) = (random((TOKENS, HIDDEN))?, random(HIDDEN)?);
    let (_, rstd) = rms_norm::forward(&x, &w, 1e-6)?;
    let ms = milliseconds(|| {
        Ok((rms_norm::forward(&x, &w, 1e-6)?, rms_norm::backward(&x, &x, &w, &rstd, None)?))
    })?;
    table = row(table, "norm, both ways", 4 * LAYERS, 0.0, 20.0 * (TOKENS * HIDDEN) as f64, ms);
    let (gate, up) = (random((TOKENS, INNER))?, random((TOKENS, INNER))?);
    let ms = milliseconds(|| Ok((geglu::forward(&gate, &up)?, geglu::backward(&gate, &gate, &up)?)))?;
    table = row(table, "GeGLU, both ways", LAYERS, 0.0, 32.0 * (TOKENS * INNER) as f64, ms);

    let (h, head) = (random((TOKENS, HIDDEN))?, random((VOCAB, HIDDEN))?);
    let targets: Vec<i64> = (0..TOKENS as i64).collect();
    let gflop = 2e-9 * (TOKENS * HIDDEN * VOCAB) as f64;
    let ms = milliseconds(|| Ok(loss_and_gradient(&h, &head, &targets, 1.0, None)?))?;
    table = row(table, "head and loss, frozen, both ways", 1, 2.0 * gflop, 8.0 * (HIDDEN * VOCAB) as f64, ms);
    let dw = head.zeros_like()?;
    let ms = milliseconds(|| Ok(loss_and_gradient(&h, &head, &targets, 1.0, Some(&dw))?))?;
    let moved = 16.0 * (HIDDEN * VOCAB) as f64;
    table = row(table, "head and loss, trained (in its place)", 1, 3.0 * gflop, moved, ms);
    let flat = VOCAB * HIDDEN;
    let (values, gradients) = (random(flat)?, random(flat)?);
    let (m, v) = (Tensor::zeros(flat, candle_core::DType::F32, &Device::Cpu)?, gradients.sqr()?);
    let (settings, rounding) = (AdamW::default(), Philox::new(1, 2));
    let ms = milliseconds(|| {
        Ok(adamw::step(&values, &gradients, (&m, &v), &settings, 5e-5.into(), 2, 1.0, &rounding)?)
    })?;
    table = row(table, "AdamW over the embedding", 1, 0.0, 28.0 * flat as f64, ms);
    Ok(table)
}
