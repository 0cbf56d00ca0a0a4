//! The card of a run: what the trainer and the dataset know, in the card's words.

use super::{CardSample, ModelCard};
use crate::data::Dataset;
use crate::display::Comparison;
use crate::train::SftTrainer;

impl SftTrainer {
    /// The card of the model that this run makes: its base, data, settings and losses. Add pictures and
    /// answers with [`ModelCard::with_plot`] and [`ModelCard::with_samples`].
    pub fn model_card(&self, dataset: &Dataset) -> ModelCard {
        let (args, base) = (self.args(), self.base_model());
        let mut settings = vec![
            ("epochs".to_string(), args.num_train_epochs.to_string()),
            ("batch size".to_string(), args.per_device_train_batch_size.to_string()),
            ("learning rate".to_string(), args.learning_rate.to_string()),
            ("learning rate schedule".to_string(), args.lr_scheduler_type.name().to_string()),
            (
                "loss on".to_string(),
                if args.assistant_only_loss { "answers" } else { "every token" }.to_string(),
            ),
        ];
        if let Some(rate) = args.embedding_learning_rate {
            settings.push(("learning rate of the embedding".to_string(), rate.to_string()));
        }
        if let Some(steps) = args.max_steps {
            settings[0] = ("steps".to_string(), steps.to_string());
        }
        if let Some(lora) = self.lora_config() {
            settings.push(("LoRA r, alpha".to_string(), format!("{}, {}", lora.r, lora.lora_alpha)));
            let in_4bit = self.quant_config().load_in_4bit;
            settings.push(("base in 4 bits while training".to_string(), in_4bit.to_string()));
            let of_embedding = match lora.trainable_token_indices.ids() {
                _ if lora.trains_embeddings() => "all rows".to_string(),
                Some(ids) => format!("the rows of {} tokens", ids.len()),
                None => "nothing".to_string(),
            };
            settings.push(("trained of embedding and head".to_string(), of_embedding));
        }
        let mut card = ModelCard {
            base_model: base.origin.clone(),
            datasets: vec![dataset.source.clone()],
            // What is made from Gemma stays under Gemma's terms; the tiny model is this repository's own.
            license: if base.is_embedded() { "apache-2.0" } else { "gemma" }.to_string(),
            settings,
            log_history: self.log_history().to_vec(),
            ..ModelCard::of(&dataset.task)
        };
        if self.lora_config().is_none() {
            card.method = "fine-tuning of every weight in Rust".to_string();
            card.tags.retain(|tag| tag != "lora");
        }
        card
    }
}

impl ModelCard {
    /// With the loss curves, as a picture in SVG.
    #[must_use]
    pub fn with_plot(self, svg: impl Into<String>) -> Self {
        Self { plot: Some(svg.into()), ..self }
    }

    /// With the answers of a comparison.
    #[must_use]
    pub fn with_samples(self, comparison: &Comparison) -> Self {
        Self { samples: comparison.rows.iter().map(CardSample::from).collect(), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{format_chat, load_dataset};
    use crate::device::Device;
    use crate::lora::{LoraConfig, TokenIndices};
    use crate::model::load_model;
    use crate::quant::QuantConfig;
    use crate::task::EmojiFilter;
    use crate::train::{SftConfig, Strategy};

    #[test]
    fn a_card_says_what_the_run_was() {
        let base = load_model("embedded", &Device::Cpu).unwrap();
        let dataset = load_dataset("embedded", EmojiFilter::PurelyEmoji).unwrap();
        let rows = format_chat(&dataset).take(4);
        let args = SftConfig { eval_strategy: Strategy::No, learning_rate: 2e-3, ..SftConfig::default() };
        let card = |lora: Option<&LoraConfig>| {
            let trainer = SftTrainer::new(&base, &rows, None, &QuantConfig::none(), lora, &args).unwrap();
            trainer.model_card(&dataset).with_plot("<svg/>").to_markdown("me/mine")
        };
        let with = card(Some(&LoraConfig::default()));
        for part in [
            "license: apache-2.0",
            "| `learning rate` | 0.002 |",
            "16, 32",
            "loss.svg",
            "LoRA fine-tuning",
            "all rows",
        ] {
            assert!(with.contains(part), "{part} in {with}");
        }
        let trainable_token_indices = TokenIndices::Occurring;
        let rows_alone =
            LoraConfig { modules_to_save: vec![], trainable_token_indices, ..LoraConfig::default() };
        let said = card(Some(&rows_alone));
        assert!(said.contains("| `trained of embedding and head` | the rows of "), "{said}");
        let without = card(None);
        assert!(without.contains("every weight") && !without.to_lowercase().contains("lora"), "{without}");
    }
}
