//! Pre-training of the base, and a rehearsal of the notebook's fine-tuning on it.

use std::path::Path;
use std::time::Instant;

use emoji_lab::data::{ChatTemplate, Conversation, Message};
use emoji_lab::lora::LoraConfig;
use emoji_lab::model::{Gemma3, KvCache};
use emoji_lab::ops::adamw::AdamW;
use emoji_lab::quant::QuantConfig;
use emoji_lab::train::{Batch, Finetune, Row};
use tokenizers::Tokenizer;

use crate::Result;
use crate::rng::Rng;

/// Text to tokens and back, in the chat format.
pub struct Codec {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Codec {
    /// Reads the tokenizer that was just made.
    pub fn read(folder: &Path) -> Result<Self> {
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|e| e.to_string())?;
        Ok(Self {
            tokenizer,
            template: ChatTemplate::new(crate::tokenizer::CHAT_TEMPLATE, "<bos>", "<end_of_turn>")?,
        })
    }

    /// A conversation's tokens; with the model's turn opened at the end if `ask`.
    pub fn encode(&self, messages: &[Message], ask: bool) -> Result<Vec<u32>> {
        let text = self.template.render(messages, ask)?;
        Ok(self.tokenizer.encode(text, false).map_err(|e| e.to_string())?.get_ids().to_vec())
    }

    fn rows(&self, chats: &[Conversation]) -> Result<Vec<Row>> {
        chats.iter().map(|chat| Ok(Row::whole(self.encode(&chat.messages, false)?))).collect()
    }

    /// The model's greedy answer to `messages`.
    pub fn answer(&self, model: &Gemma3, messages: &[Message]) -> Result<String> {
        let mut ids = self.encode(messages, true)?;
        let mut cache = KvCache::new(model.config(), ids.len() + 48)?;
        let mut answer = Vec::new();
        while answer.len() < 48 {
            let logits = model.decode(&ids, &mut cache)?;
            let token = logits.argmax(0)?.to_scalar::<u32>()?;
            if model.config().eos_token_ids.contains(&token) {
                break;
            }
            answer.push(token);
            ids = vec![token];
        }
        Ok(self.tokenizer.decode(&answer, true).map_err(|e| e.to_string())?)
    }
}

/// How the base is trained.
pub struct Settings {
    pub epochs: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub seed: u64,
}

/// Trains every parameter on `chats`: AdamW, a short warm-up, then a rate that falls to zero.
pub fn pretrain(
    model: &Gemma3,
    codec: &Codec,
    chats: &[Conversation],
    settings: &Settings,
) -> Result<Gemma3> {
    let rows = codec.rows(chats)?;
    let (held_out, rows) = rows.split_at(200);
    let held_out: Vec<Batch> = held_out.chunks(8).map(Batch::from_rows).collect();
    let optimizer = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, ..AdamW::default() };
    let mut run = Finetune::new(model, &QuantConfig::none(), None, optimizer, 1.0, settings.seed)?;
    let total = settings.epochs * rows.len().div_ceil(settings.batch_size);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let mut rng = Rng::new(settings.seed);
    let start = Instant::now();
    for epoch in 1..=settings.epochs {
        rng.shuffle(&mut order);
        let (mut sum, mut count) = (0.0, 0);
        for chunk in order.chunks(settings.batch_size) {
            let step = run.steps() as f64;
            let warm_up = ((step + 1.0) / 100.0).min(1.0);
            let rate = settings.learning_rate * warm_up * (1.0 - step / total as f64);
            sum += run.step(&[Batch::from_rows(chunk.iter().map(|&i| &rows[i]))], rate)?.loss;
            count += 1;
        }
        let held_out = run.evaluate(&held_out)?;
        println!(
            "epoch {epoch}: loss {:.3}, held out {held_out:.3}, {:.0?}",
            sum / count as f64,
            start.elapsed()
        );
    }
    Ok(run.model()?)
}

/// The notebook's fine-tuning: QLoRA on the rows, three epochs, batches of four.
pub fn rehearse(
    model: &Gemma3,
    codec: &Codec,
    (train, test): (&[Conversation], &[Conversation]),
    learning_rate: f64,
) -> Result<Gemma3> {
    let train = codec.rows(train)?;
    let test: Vec<Batch> = codec.rows(test)?.chunks(8).map(Batch::from_rows).collect();
    let optimizer = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, ..AdamW::default() };
    let (quant, lora) = (QuantConfig::default(), LoraConfig::default());
    let base = Finetune::new(model, &QuantConfig::none(), Some(&lora), optimizer, 1.0, 42)?;
    let mut run = Finetune::new(model, &quant, Some(&lora), optimizer, 1.0, 42)?;
    println!(
        "{} rows; base: validation loss {:.3}, in NF4 {:.3}",
        train.len(),
        base.evaluate(&test)?,
        run.evaluate(&test)?
    );
    let mut order: Vec<usize> = (0..train.len()).collect();
    let mut rng = Rng::new(42);
    let start = Instant::now();
    for epoch in 1..=3 {
        rng.shuffle(&mut order);
        let (mut sum, mut count) = (0.0, 0);
        for chunk in order.chunks(4) {
            sum += run.step(&[Batch::from_rows(chunk.iter().map(|&i| &train[i]))], learning_rate)?.loss;
            count += 1;
        }
        println!(
            "epoch {epoch}: training loss {:.3}, validation loss {:.3}, {:.1?}",
            sum / count as f64,
            run.evaluate(&test)?,
            start.elapsed()
        );
    }
    Ok(run.model()?)
}
