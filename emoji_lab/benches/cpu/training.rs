//! A training step beside TRL's, on the same batches.

use std::time::Instant;

use emoji_lab::model::Model;
use emoji_lab::prelude::*;
use serde_json::json;

use super::peer::Peer;
use super::{Pairs, ROOT, Row};

/// What is trained, the peer that does the same or what comes nearest to it, and whether its head and embedding
/// are one tensor.
struct Way {
    what: &'static str,
    peer: &'static str,
    tied: bool,
    quant: QuantConfig,
    lora: LoraConfig,
}

fn ways() -> [Way; 3] {
    let rows = LoraConfig {
        modules_to_save: vec![],
        trainable_token_indices: TokenIndices::Occurring,
        ..LoraConfig::default()
    };
    let google = |what, peer, tied| Way {
        what,
        peer,
        tied,
        quant: QuantConfig::default(),
        lora: LoraConfig::default(),
    };
    [
        google("a step, Google's recipe", "TRL, the same", true),
        google("a step, Google's recipe", "TRL as the notebook has it, untied", false),
        Way {
            what: "a step, adapters and the rows that occur",
            peer: "TRL as the notebook has it, untied",
            tied: false,
            quant: QuantConfig::none(),
            lora: rows,
        },
    ]
}

/// The lines for training steps of 4 rows of `data`; `folder` has the model for TRL.
pub(crate) fn beside_trl(
    model: &Model,
    folder: &str,
    data: &str,
    runs: usize,
    threads: &str,
    mut shown: Table,
) -> Result<Table> {
    let venv = std::env::var("EMOJI_LAB_ORACLE_VENV").unwrap_or_default();
    let script = format!("{ROOT}/tests/python/train_times.py");
    let python = format!("{venv}/bin/python");
    let Some(mut peer) = Peer::start("TRL", &python, &[&script, folder, threads]) else {
        return Ok(shown);
    };
    let chat = format_chat(&load_dataset(data, Task::emoji())?);
    for way in ways() {
        peer.ask(&json!({"do": "start", "tied": way.tied}))?;
        let rates = in_turn(model, &chat, &way, &mut peer, runs)?;
        let row = Row { what: way.what, unit: "s", more_is_better: false, rates };
        shown = row.show(shown, way.peer);
    }
    Ok(shown)
}

/// Seconds of steps on the same batches, ours and the peer's after it.
fn in_turn(model: &Model, chat: &ChatDataset, way: &Way, peer: &mut Peer, runs: usize) -> Result<Pairs> {
    let out = std::env::temp_dir().join(format!("emoji_lab-bench-steps-{}", std::process::id()));
    let args = SftConfig {
        output_dir: out,
        eval_strategy: Strategy::No,
        report_to_tensorboard: false,
        ..SftConfig::default()
    };
    let mut trainer = SftTrainer::new(model, chat, None, &way.quant, Some(&way.lora), &args)?;
    let mut pairs = vec![];
    // The first step of both is for nothing.
    for batch in trainer.epoch_batches(0).into_iter().take(runs + 1) {
        let tokens = &batch.tokens;
        let rows: Vec<&[u32]> = tokens.segments.iter().map(|s| &tokens.ids[s.q_start..][..s.q_len]).collect();
        let asked = json!({"do": "step", "rows": rows});
        let started = Instant::now();
        let ours = trainer.finetune_mut().step(&[batch], args.learning_rate)?;
        let seconds = started.elapsed().as_secs_f64();
        let theirs = peer.ask(&asked)?;
        say!("{}: loss {:.4}, TRL's {:.4}", way.what, ours.loss, theirs["loss"].as_f64().unwrap_or(f64::NAN));
        pairs.push((seconds, theirs["seconds"].as_f64().unwrap_or(f64::NAN)));
    }
    pairs.remove(0);
    Ok(pairs)
}
