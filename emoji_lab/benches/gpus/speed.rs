//! Rows a second on one GPU and on all of them.

use std::collections::VecDeque;
use std::time::Instant;

use emoji_lab::data::format_chat;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune, SftConfig, SftTrainer, Strategy};
use emoji_lab::{Device, Result};

use crate::{Options, recipes};

/// What one setting gave.
struct Speed {
    /// Of each round, rows a second.
    rows: Vec<f64>,
    /// Milliseconds a step, of the fastest round.
    step_ms: f64,
    /// Bytes of gradients that are added up over all GPUs.
    travels: usize,
}

/// Prints a table: a line for each recipe and batch.
pub fn bench(options: &Options, all: &Device) -> Result<()> {
    let one = Device::by_name("cuda")?.with_dtype(all.dtype())?;
    let (on_one, on_all) = (options.model(&one)?, options.model(all)?);
    let chat = format_chat(&options.dataset()?);
    let count = all.count();
    let mut lines = vec![];
    for (name, lora) in recipes() {
        for size in [4, 16] {
            let measure = |model| -> Result<Speed> {
                let args = SftConfig {
                    per_device_train_batch_size: size,
                    eval_strategy: Strategy::No,
                    ..SftConfig::default()
                };
                let quant = QuantConfig::default();
                let mut trainer = SftTrainer::new(model, &chat, None, &quant, Some(&lora), &args)?;
                let batches = trainer.epoch_batches(0);
                measure(trainer.finetune_mut(), &batches, options.rounds)
            };
            let (single, several) = (measure(&on_one)?, measure(&on_all)?);
            let best = |speed: &Speed| speed.rows.iter().copied().fold(0.0, f64::max);
            let floor = match all {
                Device::Cuda(gpus) => 1e3 * gpus.time_to_add_up(several.travels, 20)?,
                _ => f64::NAN,
            };
            lines.push(format!(
                "{name:<16} batch {size:>2}: 1 GPU {:>5.0} rows/s ({:.2} ms a step), {count} GPUs {:>5.0} rows/s \
                 ({:.2} ms): {:.2} ×; adding up {:.1} MB alone takes {floor:.2} ms; rounds {:.0?} {:.0?}",
                best(&single),
                single.step_ms,
                best(&several),
                several.step_ms,
                best(&several) / best(&single),
                several.travels as f64 / 1e6,
                single.rows,
                several.rows,
            ));
            println!("{}", lines[lines.len() - 1]);
        }
    }
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// All batches as steps of one for each GPU, once to make what is made once, then `rounds` times.
fn measure(finetune: &mut Finetune, batches: &[Batch], rounds: usize) -> Result<Speed> {
    let ranks = finetune.ranks();
    // Steps with a batch for every GPU alone: what is left of an epoch is not what is measured.
    let whole = batches.len() / ranks * ranks;
    let rows: usize = batches[..whole].iter().map(|batch| batch.rows).sum();
    let mut speed = Speed { rows: vec![], step_ms: f64::INFINITY, travels: 0 };
    for round in 0..=rounds {
        let started = Instant::now();
        let mut pending = VecDeque::new();
        for step in batches[..whole].chunks(ranks) {
            while !finetune.has_room()
                && let Some(step) = pending.pop_front()
            {
                finetune.wait(step)?;
            }
            pending.push_back(finetune.submit(step, 5e-5)?);
        }
        for step in pending {
            finetune.wait(step)?;
        }
        let seconds = started.elapsed().as_secs_f64();
        if round > 0 {
            speed.rows.push(rows as f64 / seconds);
            speed.step_ms = speed.step_ms.min(1e3 * seconds * ranks as f64 / whole as f64);
        }
    }
    let gradients = finetune.device_memory().first().and_then(|memory| {
        let part = memory.parts.iter().find(|(what, _)| *what == "gradients");
        part.map(|(_, bytes)| *bytes)
    });
    speed.travels = gradients.unwrap_or(0);
    Ok(speed)
}
