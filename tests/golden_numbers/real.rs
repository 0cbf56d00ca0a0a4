//! `real/golden.json`: the real Gemma 3 270M, from its GGUF.

use std::time::Instant;

use emoji_lab::Result;
use emoji_lab::data::Message;
use emoji_lab::lora::LoraConfig;
use emoji_lab::model::{
    Gemma3, GenerationConfig, Model, PackedTokens, Rounding, gemma_generation_config, generate_ids, open_gguf,
};
use emoji_lab::ops::IGNORE_INDEX;
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune, Row};
use serde_json::Value;

use crate::Options;
use crate::files::{self, Tensors, ids};
use crate::report::Report;

pub fn check(options: &Options, report: &mut Report) -> Result<()> {
    let path = options.dir.join("real/golden.json");
    if !path.is_file() {
        report.skip("real model", "no real/golden.json");
        return Ok(());
    }
    let Some(gguf) = &options.gguf else {
        report.skip("real model", "give --gguf FILE");
        return Ok(());
    };
    let golden = files::json(&path)?;
    let started = Instant::now();
    let files = open_gguf(gguf, Rounding::Bf16)?;
    let model = Model {
        gemma: Gemma3::new(&files.config, &files.weights, &options.device)?,
        generation_config: gemma_generation_config(&files.tokenizer),
        tokenizer: files.tokenizer,
        origin: gguf.display().to_string(),
    };
    println!("    real model loaded in {:.2} s", started.elapsed().as_secs_f64());
    if !options.device.is_cuda() {
        report.guard("real: forward", |report| forward(&model, &golden, report));
        report.guard("real: nf4", |report| nf4(&model, &golden, report));
    }
    report.guard("real: greedy", |report| greedy(&model, &golden, report));
    report.guard("real: training", |report| train(&model, &golden["train"], options, report));
    Ok(())
}

fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// The tokens that our tokenizer makes of a golden entry: a text after `<bos>`, or a dataset row
/// through the chat template.
fn tokenize(model: &Model, entry: &Value) -> Result<Vec<u32>> {
    if let Some(text) = entry["text"].as_str() {
        let mut ids = vec![model.tokenizer.bos()];
        ids.extend(model.tokenizer.encode(text)?);
        return Ok(ids);
    }
    let part = |name: &str| entry["row"][name].as_str().unwrap_or_default();
    let messages = [
        Message::system(emoji_lab::task::SYSTEM_PROMPT),
        Message::user(part("text")),
        Message::assistant(part("emoji")),
    ];
    model.tokenizer.encode_chat(&messages, false)
}

/// Each token predicts the next.
fn targets(ids: &[u32]) -> Vec<i64> {
    ids.iter().skip(1).map(|&id| i64::from(id)).chain([IGNORE_INDEX]).collect()
}

fn mean_loss(model: &Gemma3, ids: &[u32]) -> Result<f64> {
    let loss = model.loss(&PackedTokens::new(&[ids]), &targets(ids))?;
    Ok(loss.sum / loss.rows as f64)
}

fn forward(model: &Model, golden: &Value, report: &mut Report) -> Result<()> {
    let entries = array(golden, "forward");
    let (mut wrong_ids, mut wrong_top, mut worst_loss, mut worst_logit) = (0, 0, 0.0f64, 0.0f64);
    let mut longest = 0;
    for entry in entries {
        let expected = ids(&entry["ids"]);
        longest = longest.max(expected.len());
        wrong_ids += usize::from(tokenize(model, entry)? != expected);
        let loss = mean_loss(&model.gemma, &expected)?;
        worst_loss = worst_loss.max((loss - entry["loss"].as_f64().unwrap_or(f64::NAN)).abs());
        let hidden = model.gemma.hidden_states(&PackedTokens::new(&[&expected]))?;
        let logits = model.gemma.logits(&hidden.narrow(0, expected.len() - 1, 1)?)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
        let top = ids(&entry["top_ids"]);
        wrong_top += usize::from(top.first() != Some(&(best as u32)));
        for (&id, logit) in top.iter().zip(array(entry, "top_logits")) {
            let error = (f64::from(logits[id as usize]) - logit.as_f64().unwrap_or(f64::NAN)).abs();
            worst_logit = worst_logit.max(error);
        }
    }
    report.equal("real: token ids, tokenizer from the GGUF", wrong_ids, entries.len());
    report.error(&format!("real: losses, sequences up to {longest} tokens"), worst_loss, 1e-3);
    report.equal("real: top-1 of the next token", wrong_top, entries.len());
    report.error("real: top-10 logits", worst_logit, 1e-2);
    Ok(())
}

fn greedy(model: &Model, golden: &Value, report: &mut Report) -> Result<()> {
    let entries = array(golden, "greedy");
    let (mut wrong, mut tokens) = (0, 0);
    let started = Instant::now();
    for entry in entries {
        let prompt = tokenize(model, entry)?;
        let expected = ids(&entry["ids"]);
        let new = expected.len().saturating_sub(prompt.len());
        let ours = generate_ids(model, &prompt, &GenerationConfig::greedy(new.max(1)))?;
        tokens += ours.len();
        wrong += usize::from([prompt, ours].concat() != expected);
    }
    report.equal("real: greedy continuations", wrong, entries.len());
    println!("    {:.1} tokens/s, prompts included", tokens as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

fn frozen() -> AdamW {
    AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, ..AdamW::default() }
}

fn nf4(model: &Model, golden: &Value, report: &mut Report) -> Result<()> {
    let entries = array(golden, "nf4_forward");
    let lora = LoraConfig { r: 1, modules_to_save: vec![], ..LoraConfig::default() };
    // A fresh adapter adds nothing (B is zero): what is left is the NF4 base.
    let rounded =
        Finetune::new(&model.gemma, &QuantConfig::default(), Some(&lora), frozen(), 0.0, 0)?.model()?;
    let mut worst = 0.0f64;
    for entry in entries {
        let loss = mean_loss(&rounded, &ids(&entry["ids"]))?;
        worst = worst.max((loss - entry["loss"].as_f64().unwrap_or(f64::NAN)).abs());
    }
    report.error(&format!("real: {} losses with an NF4 base", entries.len()), worst, 1e-3);
    Ok(())
}

fn train(model: &Model, golden: &Value, options: &Options, report: &mut Report) -> Result<()> {
    let tolerances = options.tolerances();
    let init = options.dir.join("real/lora_init.safetensors");
    if !init.is_file() {
        report.skip("real: training", "no real/lora_init.safetensors");
        return Ok(());
    }
    let number = |name: &str, default: f64| golden[name].as_f64().unwrap_or(default);
    let lora = LoraConfig {
        r: number("r", 2.0) as usize,
        lora_alpha: number("alpha", 4.0),
        lora_dropout: 0.0,
        ensure_weight_tying: golden["tied"].as_bool().unwrap_or(true),
        ..LoraConfig::default()
    };
    let optimizer = AdamW { weight_decay: number("wd", 0.01), ..frozen() };
    let quant =
        QuantConfig { load_in_4bit: golden["quant"].as_bool().unwrap_or(true), ..QuantConfig::default() };
    let mut finetune = Finetune::new(&model.gemma, &quant, Some(&lora), optimizer, number("clip", 1.0), 0)?;
    let init = Tensors::open(&init)?;
    for name in init.names() {
        let own = name.trim_start_matches("base_model.model.").replace(".default.", ".");
        finetune.load([(own.as_str(), &init.get(name)?)])?;
    }
    report.equal(
        "real: trainable parameters",
        finetune.trainable().abs_diff(golden["trainable"].as_u64().unwrap_or(0) as usize),
        finetune.trainable(),
    );
    let (mut worst, mut worst_norm) = (0.0f64, 0.0f64);
    let started = Instant::now();
    let steps = array(golden, "steps");
    for step in steps {
        let rows: Vec<Row> = array(step, "rows").iter().map(|r| Row::whole(ids(r))).collect();
        let result = finetune.step(&[Batch::from_rows(&rows)], number("lr", 5e-5))?;
        worst = worst.max((result.loss - step["loss"].as_f64().unwrap_or(f64::NAN)).abs());
        if let Some(norm) = step["grad_norm"].as_f64() {
            worst_norm = worst_norm.max((result.grad_norm - norm).abs() / norm);
        }
    }
    report.error(&format!("real: {} training losses", steps.len()), worst, tolerances.real_losses);
    report.error("real: gradient norms, relative", worst_norm, tolerances.grad_norms.max(1e-3));
    println!("    {:.2} s per step", started.elapsed().as_secs_f64() / steps.len().max(1) as f64);
    Ok(())
}
