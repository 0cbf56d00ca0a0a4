//! Writes what Python's libraries are to read, with what we compute beside it.
//!
//! `cargo run --release -p emoji_lab --example export_for_python -- DIR`
//!
//! `tests/python/oracle.py` says what DIR holds and checks it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use emoji_lab::model::{Gemma3, PackedTokens, Tokenizer, write_safetensors};
use emoji_lab::prelude::*;
use emoji_lab::{DType, Tensor};

const TEXTS: [&str; 3] = ["let's go to the beach", "Happy birthday, dear Ada!", "rain again"];

/// Right-padded ids and mask, and the model's logits with zeros on the padding.
fn export(dir: &Path, gemma: &Gemma3, tokenizer: &Tokenizer) -> Result<()> {
    let rows: Vec<Vec<u32>> =
        TEXTS.iter().map(|text| tokenizer.encode_chat(&prompt(text), true)).collect::<Result<_>>()?;
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let logits = gemma.logits(&gemma.hidden_states(&PackedTokens::new(&rows))?)?;
    let vocab = gemma.config().vocab_size;
    let (mut ids, mut mask, mut padded, mut start) = (vec![], vec![], vec![], 0);
    for row in &rows {
        let padding = columns - row.len();
        ids.extend(row.iter().map(|&id| i64::from(id)).chain(vec![i64::from(tokenizer.pad()); padding]));
        mask.extend([vec![1i64; row.len()], vec![0; padding]].concat());
        padded.push(logits.narrow(0, start, row.len())?);
        padded.push(Tensor::zeros((padding, vocab), DType::F32, &candle_core::Device::Cpu)?);
        start += row.len();
    }
    let shape = (rows.len(), columns);
    let tensors = BTreeMap::from([
        ("input_ids".to_string(), Tensor::from_vec(ids, shape, &candle_core::Device::Cpu)?),
        ("attention_mask".to_string(), Tensor::from_vec(mask, shape, &candle_core::Device::Cpu)?),
        ("logits".to_string(), Tensor::cat(&padded, 0)?.reshape((rows.len(), columns, vocab))?),
    ]);
    write_safetensors(&dir.join("ours.safetensors"), &tensors, None)
}

fn run(out: &Path) -> Result<()> {
    let base = load_model("embedded", &Device::Cpu)?;
    let folder = out.join("base");
    base.save_pretrained(&folder)?;
    export(&folder, &base.gemma, &base.tokenizer)?;
    // From the folder, so that the adapters name a base that Python finds.
    let base = load_model(&folder.display().to_string(), &Device::Cpu)?;
    let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji)?;
    let splits = train_test_split(&format_chat(&dataset, SYSTEM_PROMPT).take(80), 0.1, 42)?;
    for tied in [true, false] {
        let form = if tied { "tied" } else { "untied" };
        let lora = LoraConfig { ensure_weight_tying: tied, ..LoraConfig::default() };
        // The tied run is the one whose logs are read.
        let run_dir = if tied { out.join("logs") } else { out.join("run_untied") };
        let args = SftConfig {
            output_dir: run_dir,
            num_train_epochs: 2.0,
            learning_rate: 2e-3,
            save_strategy: Strategy::No,
            progress_lines: 0,
            ..SftConfig::default()
        };
        // On the unrounded base: Python loads the adapter onto base/ as it is.
        let mut trainer = SftTrainer::new(
            &base,
            &splits.train,
            Some(&splits.test),
            &QuantConfig::none(),
            Some(&lora),
            &args,
        )?;
        trainer.train()?;
        let adapter = out.join(format!("adapter_{form}"));
        trainer.save_model(&adapter)?;
        export(&adapter, trainer.finetune().model(), &base.tokenizer)?;
        let merged = merge_adapters(&base, &adapter)?;
        let folder = out.join(format!("merged_{form}"));
        merged.save_pretrained(&folder)?;
        export(&folder, &merged.gemma, &merged.tokenizer)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let Some(out) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: export_for_python DIR");
        return ExitCode::from(2);
    };
    match std::fs::create_dir_all(&out)
        .map_err(|e| Error::io(&out, "creating the folder", e))
        .and_then(|()| run(&out))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
