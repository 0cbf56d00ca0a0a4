//! `forward.safetensors` and `gradients.safetensors` against `model/`.

use std::path::Path;

use emoji_lab::Result;
use emoji_lab::model::Gemma3;
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::Finetune;

use crate::files::{self, Tensors, max_difference, relative};
use crate::report::Report;

pub fn check(dir: &Path, report: &mut Report) -> Result<Option<Gemma3>> {
    let folder = dir.join("model");
    if !folder.is_dir() {
        report.skip("forward and gradients", "no folder model/");
        return Ok(None);
    }
    let model = files::model(&folder)?;
    let forward = dir.join("forward.safetensors");
    if !forward.is_file() {
        report.skip("forward and gradients", "no forward.safetensors");
        return Ok(Some(model));
    }
    let golden = Tensors::open(&forward)?;
    report.guard("forward", |report| {
        let batch = golden.batch("")?;
        let hidden = model.hidden_states(&batch.tokens)?;
        let expected = golden.unpadded("logits", &golden.mask("attention_mask")?)?;
        report.error("forward: logits", max_difference(&model.logits(&hidden)?, &expected)?, 1e-4);
        let loss = model.loss(&batch.tokens, &batch.targets)?;
        let expected = f64::from(golden.floats("loss")?[0]);
        report.error("forward: loss", (loss.sum / loss.rows as f64 - expected).abs(), 1e-4);
        Ok(())
    });
    let gradients = dir.join("gradients.safetensors");
    if gradients.is_file() {
        report.guard("gradients", |report| {
            check_gradients(&model, &golden, &Tensors::open(&gradients)?, report)
        });
    } else {
        report.skip("gradients", "no gradients.safetensors");
    }
    Ok(Some(model))
}

/// One full fine-tuning step without any change (learning rate 0) leaves the gradients to be read.
fn check_gradients(model: &Gemma3, forward: &Tensors, golden: &Tensors, report: &mut Report) -> Result<()> {
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, ..AdamW::default() };
    let mut finetune = Finetune::new(model, &QuantConfig::none(), None, optimizer, 0.0, 0)?;
    finetune.step(&[forward.batch("")?], 0.0)?;
    let (mut worst, mut worst_name, mut missing) = (0.0f64, String::new(), 0);
    let slots = finetune.slots();
    for name in golden.names() {
        let Some(slot) = slots.iter().find(|slot| slot.name == name) else {
            missing += 1;
            continue;
        };
        let ours = finetune.gradient(slot)?.flatten_all()?.to_vec1::<f32>()?;
        let error = relative(&ours, &golden.floats(name)?);
        if error > worst || error.is_nan() {
            (worst, worst_name) = (error, name.to_string());
        }
    }
    let extra = slots.iter().filter(|slot| !golden.has(&slot.name)).count();
    report.equal("gradients: parameters without a counterpart", missing + extra, golden.names().len());
    report.error(&format!("gradients: worst, {worst_name}"), worst, 1e-4);
    Ok(())
}
