//! Which tensors of a file a configuration asks for, and what is said of the others.

use std::collections::{BTreeMap, BTreeSet};

use super::config::Gemma3Config;
use super::names::{is_passed_over, is_quantised, without_prefix};
use super::parameters::{EMBED_TOKENS, LM_HEAD, layer_of, tensor_shapes};
use super::weights::Weights;
use crate::display::say;
use crate::error::{Error, Result};
use crate::ops::lazy::LazyTensor;

const INCOMPLETE: &str = "The file is incomplete or not a Gemma 3 text model";
const OTHERS: &str = "The weights and the configuration do not belong together";

/// The tensors that a configuration asks for, which of them have come, and what else there was.
pub(super) struct Wanted {
    config: Gemma3Config,
    shapes: BTreeMap<String, Vec<usize>>,
    left: BTreeSet<String>,
    /// Names of tensors that nobody asked for and that are no matter of course.
    unused: Vec<String>,
}

impl Wanted {
    pub(super) fn new(config: &Gemma3Config) -> Self {
        let mut shapes: BTreeMap<_, _> = tensor_shapes(config).into_iter().collect();
        let left = shapes.keys().cloned().collect();
        // Not asked for where it is the embedding, but looked at: it may be another.
        shapes.insert(LM_HEAD.to_string(), vec![config.vocab_size, config.hidden_size]);
        Self { config: config.clone(), shapes, left, unused: vec![] }
    }

    /// The name under which to keep a tensor of a file, or `None` to pass over it.
    pub(super) fn check(&mut self, origin: &str, stored: &str, shape: &[usize]) -> Result<Option<String>> {
        let name = without_prefix(stored);
        let Some(dims) = self.shapes.get(&name) else {
            if !is_passed_over(&name) {
                self.unused.push(stored.to_string());
            }
            return Ok(None);
        };
        if shape != dims.as_slice() {
            return Err(match name == LM_HEAD && self.config.tie_word_embeddings {
                false => wrong_shape(origin, &name, shape, dims),
                true => Error::model(
                    origin,
                    format!(
                        "tensor {name} has shape {shape:?}, the configuration says {dims:?} and \
                         tie_word_embeddings: true"
                    ),
                    "A head has a row for each of the vocab_size tokens: set vocab_size right, or take the head \
                     out of the file",
                ),
            });
        }
        self.left.remove(&name);
        Ok(Some(name))
    }

    /// What was found, if it is whole.
    pub(super) fn finish(self, origin: String, weights: BTreeMap<String, LazyTensor>) -> Result<Weights> {
        self.all_found(&origin)?;
        if let Some(first) = self.unused.first() {
            say(format!(
                "{origin}: {} of its tensors are not part of the model that config.json describes and are left out, \
                 such as {first}{}",
                self.unused.len(),
                self.more_layers(),
            ));
        }
        let mut weights = Weights::of_file(origin, weights);
        weights.settle_head(&mut self.config.clone())?;
        Ok(weights)
    }

    /// That there are layers left over, if there are.
    fn more_layers(&self) -> String {
        let layer = |name: &String| layer_of(&without_prefix(name));
        let most = self.unused.iter().filter_map(layer).max().unwrap_or_default();
        let layers = self.config.num_hidden_layers;
        match most >= layers {
            true => {
                format!(" (num_hidden_layers is {layers}, the file has {} layers)", most.saturating_add(1))
            }
            false => String::new(),
        }
    }

    fn all_found(&self, origin: &str) -> Result<()> {
        let Some(name) = self.left.first() else { return Ok(()) };
        if name == LM_HEAD {
            return Err(Error::model(
                origin,
                format!("no tensor {LM_HEAD}, and the configuration says tie_word_embeddings: false"),
                "Set tie_word_embeddings to true in config.json if the head is the embedding",
            ));
        }
        let seen = |is: &dyn Fn(&str) -> bool| self.unused.iter().find(|name| is(name));
        if let Some(other) = seen(&is_quantised) {
            let problem = format!("the weights are stored quantised (it has {other})");
            let help = "Choose the unquantised model; QuantConfig rounds it to 4 bits on loading";
            return Err(Error::model(origin, problem, help));
        }
        if let Some(other) = seen(&|name| name.contains(".lora_A.") || name.contains(".base_layer.")) {
            let problem = format!("an adapter is in it that was not merged (it has {other})");
            return Err(Error::model(origin, problem, "Merge it with PEFT's merge_and_unload before saving"));
        }
        if let Some(layer) = layer_of(name) {
            let mut of_layer = self.shapes.keys().filter(|name| layer_of(name) == Some(layer));
            if of_layer.all(|name| self.left.contains(name)) {
                let problem = format!(
                    "no tensor {name}, nor any other of layer {layer}; the configuration says num_hidden_layers: {}",
                    self.config.num_hidden_layers
                );
                return Err(Error::model(origin, problem, INCOMPLETE));
            }
        }
        Err(missing(origin, name))
    }
}

pub(super) fn missing(origin: &str, name: &str) -> Error {
    Error::model(origin, format!("no tensor {name}"), INCOMPLETE)
}

pub(super) fn wrong_shape(origin: &str, name: &str, shape: &[usize], dims: &[usize]) -> Error {
    let which = if name == EMBED_TOKENS { " (vocab_size, hidden_size)" } else { "" };
    let problem = format!("tensor {name} has shape {shape:?}, the configuration says {dims:?}{which}");
    Error::model(origin, problem, OTHERS)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::model::gguf::writer::{golden_config, golden_weights};

    #[test]
    fn what_the_configuration_does_not_ask_for_is_told_by_its_kind() {
        let mut tensors = golden_weights().tensors;
        for name in [
            "model.layers.6.mlp.up_proj.weight",
            "model.layers.0.self_attn.q_proj.bias",
            "model.layers.0.self_attn.rotary_emb.inv_freq",
            "vision_tower.layers.9.x",
        ] {
            tensors.insert(name.into(), Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap());
        }
        let mut wanted = Wanted::new(&golden_config());
        for (name, tensor) in &tensors {
            wanted.check("x", name, tensor.dims()).unwrap();
        }
        assert_eq!(
            wanted.unused,
            ["model.layers.0.self_attn.q_proj.bias", "model.layers.6.mlp.up_proj.weight"]
        );
        assert!(wanted.more_layers().contains("num_hidden_layers is 6, the file has 7"));
        wanted.all_found("x").unwrap();
        for (other, said) in [
            ("model.layers.0.mlp.up_proj.qweight", "stored quantised"),
            ("base_model.model.model.layers.0.mlp.up_proj.base_layer.weight", "not merged"),
        ] {
            let mut wanted = Wanted::new(&golden_config());
            wanted.check("x", other, &[3]).unwrap();
            assert!(wanted.all_found("x").unwrap_err().to_string().contains(said));
        }
        // A layer too few, and rows too few.
        let deep = Gemma3Config { num_hidden_layers: 7, ..golden_config() };
        let mut wanted = Wanted::new(&deep);
        for (name, tensor) in &golden_weights().tensors {
            wanted.check("x", name, tensor.dims()).unwrap();
        }
        let said = wanted.all_found("x").unwrap_err().to_string();
        assert!(said.contains("nor any other of layer 6") && said.contains("num_hidden_layers: 7"), "{said}");
        let said = wanted.check("x", EMBED_TOKENS, &[511, 64]).unwrap_err().to_string();
        assert!(said.contains("[511, 64]") && said.contains("vocab_size"), "{said}");
    }
}
