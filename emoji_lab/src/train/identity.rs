//! What makes a run the run it is: rows, settings, base model. A checkpoint of another run is not resumed.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::batch::Row;
use super::config::SftConfig;
use super::schedule::Scheduler;
use crate::error::Result;
use crate::lora::LoraConfig;
use crate::model::{LinearName, Model};
use crate::ops::lazy::LazyTensor;
use crate::quant::QuantConfig;

/// Everything that decides a run's numbers, by name, in the order in which differences are told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct RunIdentity(Map<String, Value>);

impl RunIdentity {
    /// Of a run with these settings on these rows; [`add_base`](Self::add_base) completes it. On several
    /// devices `args` say what one would have to accumulate: how many there are is not the run's.
    pub(super) fn new(
        args: &SftConfig,
        quant: &QuantConfig,
        lora: Option<&LoraConfig>,
        rows: &[Row],
        (total_steps, warmup): (usize, usize),
    ) -> Self {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Value| fields.insert(name.to_string(), value);
        put("training rows", json!(rows.len()));
        put("hash of the training rows", json!(hex(hash_rows(rows))));
        put("per_device_train_batch_size", json!(args.per_device_train_batch_size));
        put(ACCUMULATION, json!(args.gradient_accumulation_steps));
        put("learning_rate", json!(args.learning_rate));
        if let Some(rate) = args.embedding_learning_rate {
            put("embedding_learning_rate", json!(rate));
        }
        put("lr_scheduler_type", json!(args.lr_scheduler_type.to_string()));
        if args.lr_scheduler_type != Scheduler::Constant {
            put("warmup steps", json!(warmup));
        }
        // Other schedules look ahead to the end: a longer run is another one from its first step.
        if !matches!(args.lr_scheduler_type, Scheduler::Constant | Scheduler::ConstantWithWarmup) {
            put("steps of the whole run (num_train_epochs, max_steps)", json!(total_steps));
        }
        put("adam_beta1", json!(args.adam_beta1));
        put("adam_beta2", json!(args.adam_beta2));
        put("adam_epsilon", json!(args.adam_epsilon));
        put("optim_state_dtype", json!(args.optim_state_dtype.as_str()));
        put("weight_decay", json!(args.weight_decay));
        put("max_grad_norm", json!(args.max_grad_norm));
        put("seed", json!(args.seed));
        put("load_in_4bit", json!(quant.load_in_4bit));
        if quant.load_in_4bit {
            put("blocksize", json!(quant.blocksize));
        }
        match lora {
            None => drop(put("LoRA", json!("none: every parameter is trained"))),
            Some(lora) => {
                put("r", json!(lora.r));
                put("lora_alpha", json!(lora.lora_alpha));
                put("lora_dropout", json!(lora.lora_dropout));
                let targets: Vec<_> = lora.targets().into_iter().map(LinearName::name).collect();
                put("target_modules", json!(targets));
                // A set: neither its order nor an entry that is there twice decides anything.
                let whole: BTreeSet<&String> = lora.modules_to_save.iter().collect();
                if !whole.is_empty() {
                    put("ensure_weight_tying", json!(lora.ensure_weight_tying));
                }
                put("modules_to_save", json!(whole));
                if let Some(ids) = lora.trainable_token_indices.ids() {
                    let hash = hex(hash_words(ids.iter().map(|id| u64::from(*id))));
                    put("trainable_token_indices (number and hash)", json!([ids.len(), hash]));
                }
            }
        }
        Self(fields)
    }

    /// Adds the base model: its configuration, a hash over its weights, and what it computes in.
    ///
    /// It reads every weight (0.2 s for a gigabyte on two cores), so it is done when it is first needed.
    ///
    /// # Errors
    /// Only if candle fails.
    pub(super) fn add_base(&mut self, base: &Model) -> Result<()> {
        let device = base.gemma.device();
        let mut put = |name: &str, value: Value| self.0.insert(name.to_string(), value);
        put("dtype", json!(device.dtype().as_str()));
        put("device", json!(if device.is_cuda() { "GPU" } else { "CPU" }));
        // What the numbers depend on: not what is said about tokens, nor how long a text may be.
        const NO_SAY: [&str; 4] = ["bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"];
        if let Value::Object(fields) = base.gemma.config().to_json() {
            for (name, value) in fields.into_iter().filter(|(name, _)| !NO_SAY.contains(&name.as_str())) {
                put(&format!("{name} of the base model"), value);
            }
        }
        let weights: Vec<(String, LazyTensor)> = base.gemma.lazy_weights()?.into_iter().collect();
        let hashes: Vec<u64> =
            weights.par_iter().map(|(_, weight)| hash_weight(weight)).collect::<Result<_>>()?;
        put("weights of the base model (hash)", json!(hex(hash_words(hashes.into_iter()))));
        put(ORIGIN, json!(base.origin));
        Ok(())
    }

    /// Whether it is the same run: the same in everything but the name of the base model, which says
    /// where it was found.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.differences(other).is_empty()
    }

    /// What differs, a phrase per field: "learning_rate: 0.0002 there, 0.00005 here".
    pub(super) fn differences(&self, here: &Self) -> Vec<String> {
        let shown = |value: Option<&Value>| match value {
            None => "not set".to_string(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        };
        let mut names: Vec<&String> = self.0.keys().collect();
        names.extend(here.0.keys().filter(|name| !self.0.contains_key(*name)));
        let mut phrases: Vec<String> = names
            .into_iter()
            .filter(|name| *name != ORIGIN && self.0.get(*name) != here.0.get(*name))
            .map(|name| {
                let of_all = if name == ACCUMULATION { " (of all devices together)" } else { "" };
                format!("{name}{of_all}: {} there, {} here", shown(self.0.get(name)), shown(here.0.get(name)))
            })
            .collect();
        // The names of two base models say more than their hashes.
        let (there, is_here) = (shown(self.0.get(ORIGIN)), shown(here.0.get(ORIGIN)));
        if there != is_here && phrases.iter().any(|phrase| phrase.contains("of the base model")) {
            phrases.push(format!("{ORIGIN}: {there} there, {is_here} here"));
        }
        phrases
    }
}

const ORIGIN: &str = "base model";

const ACCUMULATION: &str = "gradient_accumulation_steps";

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

fn hash_rows(rows: &[Row]) -> u64 {
    // What is masked counts too: the same tokens with `assistant_only_loss` are another run.
    hash_words(rows.iter().flat_map(|row| row.marks().map(u64::from).chain([u64::MAX])))
}

/// Not cryptographic: it is to notice another model, not an attack.
fn hash_words(words: impl Iterator<Item = u64>) -> u64 {
    add_words(START, words)
}

/// The hash of nothing.
const START: u64 = 0xcbf2_9ce4_8422_2325;

fn add_words(hash: u64, words: impl Iterator<Item = u64>) -> u64 {
    words.fold(hash, |hash, word| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95))
}

/// Over the bits of the values, two per word; the same for the same values, wherever they came from.
fn hash_weight(weight: &LazyTensor) -> Result<u64> {
    let mut hash = START;
    weight.in_parts(|values| {
        let (pairs, rest) = values.as_chunks::<2>();
        let words = pairs.iter().map(|[a, b]| u64::from(a.to_bits()) | u64::from(b.to_bits()) << 32);
        hash = add_words(hash, words.chain(rest.iter().map(|value| u64::from(value.to_bits()))));
    })?;
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::host;
    use crate::model::load_model;

    fn identity(args: &SftConfig, model: &Model) -> RunIdentity {
        let rows = [Row::whole(vec![1, 2, 3])];
        let lora = LoraConfig::default();
        let mut identity = RunIdentity::new(args, &QuantConfig::default(), Some(&lora), &rows, (10, 0));
        identity.add_base(model).unwrap();
        identity
    }

    #[test]
    fn what_differs_is_named_field_by_field() {
        let model = load_model("embedded", &Device::Cpu).unwrap();
        let args = SftConfig::default();
        let here = identity(&args, &model);
        assert!(here.is(&identity(&args, &model)));
        let text = serde_json::to_string(&here).unwrap();
        assert!(here.is(&serde_json::from_str(&text).unwrap()), "as it comes back from a file");

        let other = SftConfig { learning_rate: 2e-4, seed: 7, ..args.clone() };
        let said = identity(&other, &model).differences(&here);
        assert_eq!(said, ["learning_rate: 0.0002 there, 0.00005 here", "seed: 7 there, 42 here"]);
        // One set of modules, in another order.
        let with = |names: &[&str]| {
            let modules_to_save = names.iter().map(|name| name.to_string()).collect();
            let lora = LoraConfig { modules_to_save, ..LoraConfig::default() };
            RunIdentity::new(&args, &QuantConfig::none(), Some(&lora), &[], (10, 0))
        };
        assert!(with(&["lm_head", "embed_tokens"]).is(&with(&["embed_tokens", "lm_head", "lm_head"])));
        assert!(!with(&["lm_head"]).is(&with(&["embed_tokens"])));
        // A constant rate goes on for as long as one likes, a cosine does not; and it has no warmup.
        let rows = [];
        let of = |scheduler: Scheduler, steps: usize| {
            let args = SftConfig { lr_scheduler_type: scheduler, ..args.clone() };
            RunIdentity::new(&args, &QuantConfig::none(), None, &rows, (steps, steps / 5))
        };
        assert!(of(Scheduler::Constant, 10).is(&of(Scheduler::Constant, 20)));
        assert!(
            of(Scheduler::Cosine, 10).differences(&of(Scheduler::Cosine, 20))[0].contains("2 there, 4 here")
        );
    }

    #[test]
    fn another_configuration_is_named_by_its_field() {
        let model = load_model("embedded", &Device::Cpu).unwrap();
        let here = identity(&SftConfig::default(), &model);
        let shown = serde_json::to_value(&here).unwrap();
        assert_eq!(shown["hidden_size of the base model"], json!(model.gemma.config().hidden_size));
        assert!(shown.get("eos_token_id of the base model").is_none());
        let mut other = shown.clone();
        other["rope_theta of the base model"] = json!(5.0);
        let said = serde_json::from_value::<RunIdentity>(other).unwrap().differences(&here);
        assert!(
            said.len() == 1 && said[0].starts_with("rope_theta of the base model: 5.0 there"),
            "{said:?}"
        );
    }

    #[test]
    fn another_base_model_is_noticed_in_a_single_weight() {
        let model = load_model("embedded", &Device::Cpu).unwrap();
        let here = identity(&SftConfig::default(), &model);
        // The same weights under another name are the same model.
        let mut moved = model.clone();
        moved.origin = "elsewhere".to_string();
        assert!(here.is(&identity(&SftConfig::default(), &moved)));
        let mut other = moved;
        let norm = &other.gemma.norm.weight.value;
        let mut values: Vec<f32> = norm.to_vec1().unwrap();
        *values.last_mut().unwrap() += 1e-3;
        other.gemma.norm.weight.value = host::tensor(values, norm.dims()).unwrap().into();
        let said = identity(&SftConfig::default(), &other).differences(&here);
        assert!(said.len() == 2 && said[0].starts_with("weights of the base model"), "{said:?}");
        assert_eq!(said[1], "base model: elsewhere there, embedded here");
    }
}
