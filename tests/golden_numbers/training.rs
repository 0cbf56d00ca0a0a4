//! The TRL runs: every folder with a `trace.json`, replayed from `init/` on `batches.safetensors`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use emoji_lab::lora::{Adapter, merge_into};
use emoji_lab::model::Gemma3;
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune, Row};
use emoji_lab::{Error, Result};
use serde_json::Value;

use crate::files::{self, Tensors, max_difference, relative};
use crate::report::Report;
use crate::{Options, Tolerances};

/// transformers' default, which the traces do not name.
const EVAL_BATCH_SIZE: u64 = 8;

pub fn check(options: &Options, base: Option<&Gemma3>, report: &mut Report) -> Result<()> {
    let dir = options.dir.as_path();
    let entries = std::fs::read_dir(dir).map_err(|e| Error::io(dir, "listing the golden folder", e))?;
    let mut runs: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.join("trace.json").is_file()).collect();
    runs.sort();
    if runs.is_empty() {
        report.skip("training runs", "no folder with a trace.json");
    }
    for run in runs {
        let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(base) = base else {
            report.skip(&name, "no folder model/");
            continue;
        };
        report.guard(&name, |report| replay(&name, &run, base, options.tolerances(), report));
        if options.device.is_cuda() || !run.join("init").is_dir() {
            continue;
        }
        if run.join("final").is_dir() && run.join("merged.safetensors").is_file() {
            let merge = format!("{name}: merge");
            report.guard(&merge, |report| check_merge(&name, dir, &run, base, report));
        } else {
            report.skip(&format!("{name}: merge"), "no final/ with a merged.safetensors");
        }
    }
    Ok(())
}

fn number(args: &Value, name: &str, default: f64) -> f64 {
    args[name].as_f64().unwrap_or(default)
}

/// Whether a run trained every parameter, without adapters: it starts from the base.
fn is_whole(trace: &Value) -> bool {
    trace["whole"].as_bool() == Some(true)
}

/// The trainer at `init/`, under the trace's settings.
fn start(run: &Path, trace: &Value, base: &Gemma3) -> Result<Finetune> {
    let args = &trace["args"];
    let optimizer = AdamW {
        beta1: number(args, "adam_beta1", 0.9),
        beta2: number(args, "adam_beta2", 0.999),
        eps: number(args, "adam_epsilon", 1e-8),
        weight_decay: number(args, "weight_decay", 0.0),
        ..AdamW::default()
    };
    let max_grad_norm = number(args, "max_grad_norm", 1.0);
    if is_whole(trace) {
        return Finetune::new(base, &QuantConfig::none(), None, optimizer, max_grad_norm, 0);
    }
    let init = Adapter::load(run.join("init"))?;
    init.check_fits(base.config())?;
    let mut lora = init.config.lora.clone();
    lora.ensure_weight_tying = init.config.tied;
    let quant =
        if trace["quant"].as_bool() == Some(true) { QuantConfig::default() } else { QuantConfig::none() };
    let mut finetune = Finetune::new(base, &quant, Some(&lora), optimizer, max_grad_norm, 0)?;
    finetune.load(init.tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
    Ok(finetune)
}

fn eval_batches(trace: &Value) -> Vec<Batch> {
    let rows: Vec<Row> =
        trace["eval_rows"].as_array().into_iter().flatten().map(|ids| Row::whole(files::ids(ids))).collect();
    let size = trace["args"]["per_device_eval_batch_size"].as_u64().unwrap_or(EVAL_BATCH_SIZE) as usize;
    rows.chunks(size.max(1)).map(Batch::from_rows).collect()
}

fn replay(name: &str, run: &Path, base: &Gemma3, tolerances: Tolerances, report: &mut Report) -> Result<()> {
    let trace = files::json(&run.join("trace.json"))?;
    let batches = Tensors::open(&run.join("batches.safetensors"))?;
    let mut finetune = start(run, &trace, base)?;
    let eval = eval_batches(&trace);
    let accumulation = trace["args"]["gradient_accumulation_steps"].as_u64().unwrap_or(1) as usize;
    let (mut losses, mut norms, mut evals) = (vec![], vec![], vec![]);
    let relative_error = |ours: f64, theirs: f64| (ours - theirs).abs() / theirs.abs();
    let mut micro = 0;
    for entry in trace["log_history"].as_array().into_iter().flatten() {
        if let Some(loss) = entry["loss"].as_f64() {
            let parts = (micro..micro + accumulation)
                .map(|i| format!("{i:03}."))
                .filter(|p| batches.has(&format!("{p}input_ids")));
            let step: Vec<Batch> = parts.map(|prefix| batches.batch(&prefix)).collect::<Result<_>>()?;
            micro += accumulation;
            let learning_rate = number(entry, "learning_rate", number(&trace["args"], "learning_rate", 0.0));
            let result = finetune.step(&step, learning_rate)?;
            losses.push(relative_error(result.loss, loss));
            if let Some(norm) = entry["grad_norm"].as_f64() {
                norms.push(relative_error(result.grad_norm, norm));
            }
        } else if let Some(loss) = entry["eval_loss"].as_f64() {
            evals.push(relative_error(finetune.evaluate(&eval)?, loss));
        }
    }
    for (what, errors, tolerance) in [
        ("losses", &losses, tolerances.losses),
        ("grad norms", &norms, tolerances.grad_norms),
        ("eval losses", &evals, tolerances.losses),
    ] {
        let label = format!("{name}: {} {what}, worst relative", errors.len());
        match errors.iter().copied().reduce(f64::max) {
            Some(worst) => report.error(&label, worst, tolerance),
            None => report.skip(&label, "the trace has none"),
        }
    }
    if !run.join("final").is_dir() {
        report.skip(&format!("{name}: final values"), "no folder final/");
        return Ok(());
    }
    let expected: BTreeMap<String, Tensor> = if is_whole(&trace) {
        let model = Tensors::open(&run.join("final/model.safetensors"))?;
        model.names().into_iter().map(|n| Ok((n.to_string(), model.get(n)?))).collect::<Result<_>>()?
    } else {
        Adapter::load(run.join("final"))?.tensors
    };
    // Over all tensors of a kind, not tensor by tensor: AdamW divides by the root of the second moment, so
    // where a gradient is nearly zero its rounding decides the direction.
    let mut parts = ["LoRA", "embeddings", "norms", "matrices"].map(|kind| (kind, vec![], vec![]));
    let kind = |name: &str| match () {
        () if name.contains(".lora_") => 0,
        () if name.contains("embed_tokens") || name.contains("lm_head") => 1,
        () if name.contains("norm") => 2,
        () => 3,
    };
    let mut compared = 0;
    for slot in finetune.slots() {
        let Some(theirs) = expected.get(&slot.name) else { continue };
        compared += 1;
        let (_, ours_part, theirs_part) = &mut parts[kind(&slot.name)];
        ours_part.extend(finetune.value(slot)?.flatten_all()?.to_vec1::<f32>()?);
        theirs_part.extend(theirs.flatten_all()?.to_vec1::<f32>()?);
    }
    report.equal(
        &format!("{name}: trained tensors without a counterpart"),
        finetune.slots().len() - compared,
        finetune.slots().len(),
    );
    for (what, ours, theirs) in parts.iter().filter(|(_, ours, _)| !ours.is_empty()) {
        report.error(
            &format!("{name}: final values, {what}, relative"),
            relative(ours, theirs),
            tolerances.adapter,
        );
    }
    Ok(())
}

fn check_merge(name: &str, dir: &Path, run: &Path, base: &Gemma3, report: &mut Report) -> Result<()> {
    let golden = Tensors::open(&run.join("merged.safetensors"))?;
    let adapter = Adapter::load(run.join("final"))?;
    let merged = merge_into(base, &adapter)?;
    let weights = merged.named_weights()?.tensors;
    let (mut worst, mut compared) = (0.0f64, 0);
    for tensor in golden.names() {
        let Some(own) = tensor.strip_prefix("w.") else { continue };
        let ours = match weights.get(own) {
            Some(ours) => ours.clone(),
            None if own == "lm_head.weight" => weights["model.embed_tokens.weight"].clone(),
            None => {
                return Err(Error::model(
                    own,
                    "the merged model has no such tensor",
                    "See Gemma3::named_weights",
                ));
            }
        };
        worst = worst.max(max_difference(&ours, &golden.get(tensor)?)?);
        compared += 1;
    }
    report.error(&format!("{name}: merged weights ({compared} tensors)"), worst, 1e-4);
    let forward = dir.join("forward.safetensors");
    if !forward.is_file() {
        report.skip(&format!("{name}: merged logits"), "no forward.safetensors");
        return Ok(());
    }
    let forward = Tensors::open(&forward)?;
    let batch = forward.batch("")?;
    let logits = merged.logits(&merged.hidden_states(&batch.tokens)?)?;
    let expected = golden.unpadded("logits", &forward.mask("attention_mask")?)?;
    report.error(&format!("{name}: merged logits"), max_difference(&logits, &expected)?, 1e-4);

    // The adapter beside the unrounded base computes what the merged weights compute.
    let mut lora = adapter.config.lora.clone();
    lora.ensure_weight_tying = adapter.config.tied;
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, ..AdamW::default() };
    let mut beside = Finetune::new(base, &QuantConfig::none(), Some(&lora), optimizer, 0.0, 0)?;
    beside.load(adapter.tensors.iter().map(|(n, t)| (n.as_str(), t)))?;
    let model = beside.model()?;
    let beside = model.logits(&model.hidden_states(&batch.tokens)?)?;
    report.error(&format!("{name}: merged against adapter on base"), max_difference(&logits, &beside)?, 1e-4);
    Ok(())
}
