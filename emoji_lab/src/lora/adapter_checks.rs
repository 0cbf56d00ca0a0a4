//! Whether an adapter's tensors are those that its settings ask for, and whether they fit a model.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Tensor};

use super::adapter::Adapter;
use super::adapter_config::AdapterConfig;
use super::config::whole_module;
use crate::error::{Error, Result};
use crate::model::{EMBED_TOKENS, Gemma3Config, LM_HEAD, LinearName, Parameter, layer_of};

impl Adapter {
    /// Checks that the adapter fits a model of this shape: as many layers, and each tensor as
    /// wide as its layer.
    ///
    /// # Errors
    /// [`Error::Model`] that names the first tensor which does not fit.
    pub fn check_fits(&self, model: &Gemma3Config) -> Result<()> {
        let origin = self.config.base_model_name_or_path.as_deref().unwrap_or("another model");
        let help = format!("The adapter was trained on {origin}: merge it into that one");
        let wrong = |problem: String| Error::model("adapter", problem, &help);
        let layers = model.num_hidden_layers;
        if self.config.selection.is_none() && self.num_layers() != layers {
            return Err(wrong(format!("it has {} layers, the model {layers}", self.num_layers())));
        }
        if let Some(beyond) =
            self.tensors.keys().find(|name| layer_of(name).is_some_and(|layer| layer >= layers))
        {
            return Err(wrong(format!("it has tensor {beyond}, the model has {layers} layers")));
        }
        let fits = |parameter: Parameter, rank: usize| {
            let (name, dims) = (parameter.name(), parameter.shape(model, rank));
            match self.tensors.get(&name) {
                Some(tensor) if tensor.dims() != dims => Err(wrong(format!(
                    "tensor {name} has shape {:?}, the model needs {dims:?}",
                    tensor.dims()
                ))),
                _ => Ok(()),
            }
        };
        for layer in 0..layers {
            for which in LinearName::ALL {
                let (a, b) = (Parameter::LoraA(layer, which), Parameter::LoraB(layer, which));
                if self.config.is_on(layer, which) && !self.tensors.contains_key(&a.name()) {
                    return Err(wrong(format!("it has no tensor {a}")));
                }
                let rank = self.config.module_rank(layer, which);
                fits(a, rank)?;
                fits(b, rank)?;
            }
        }
        fits(Parameter::LmHead, 0)?;
        fits(Parameter::EmbedTokens, 0)?;
        for (parameter, ids) in self.config.token_rows() {
            fits(parameter, ids.len())?;
            if let Some(outside) = ids.iter().find(|id| **id as usize >= model.vocab_size) {
                return Err(wrong(format!(
                    "it trains the row of token {outside}, the model has {} tokens",
                    model.vocab_size
                )));
            }
        }
        Ok(())
    }

    pub(super) fn checked(
        mut config: AdapterConfig,
        mut tensors: BTreeMap<String, Tensor>,
        origin: &str,
    ) -> Result<Self> {
        let wrong = |problem: String| {
            let help = "The tensors and adapter_config.json do not belong together, or some are missing";
            Error::model(origin, problem, help)
        };
        share_tied(&mut config, &mut tensors)?;
        if config.head_tokens.as_deref() == config.lora.trainable_token_indices.ids()
            && !tensors.contains_key(&Parameter::LmHeadRows.name())
        {
            // The same rows of a tied pair: PEFT saves them once.
            config.head_tokens = None;
        }
        let layers: BTreeSet<usize> = tensors.keys().filter_map(|name| layer_of(name)).collect();
        let (mut expected, mut magnitudes) = (BTreeMap::new(), BTreeSet::new());
        // Without a selection every block from the first on must be there.
        let blocks: Vec<usize> = match &config.selection {
            Some(_) => layers.iter().copied().collect(),
            None => (0..layers.len()).collect(),
        };
        for layer in blocks {
            for which in LinearName::ALL.into_iter().filter(|which| config.is_on(layer, *which)) {
                let r = config.module_rank(layer, which);
                expected.insert(Parameter::LoraA(layer, which).name(), Some((0, r)));
                expected.insert(Parameter::LoraB(layer, which).name(), Some((1, r)));
                if config.use_dora {
                    magnitudes.insert(Parameter::LoraMagnitude(layer, which).name());
                }
            }
        }
        for whole in config.lora.modules_to_save.iter().filter_map(|module| whole_module(module)) {
            expected.insert(whole.name(), None);
        }
        // PEFT saves the embedding beside the adapter where it was made larger, or on request.
        for whole in [LM_HEAD, EMBED_TOKENS] {
            if tensors.contains_key(whole) {
                expected.entry(whole.to_string()).or_insert(None);
            }
        }
        for (parameter, ids) in config.token_rows() {
            let distinct: BTreeSet<&u32> = ids.iter().collect();
            if distinct.len() != ids.len() {
                return Err(wrong("trainable_token_indices has a token twice".into()));
            }
            expected.insert(parameter.name(), Some((0, ids.len())));
        }
        if layers.is_empty() && config.lora.modules_to_save.is_empty() {
            return Err(wrong("no lora_A tensor of a model layer".into()));
        }
        let is_known = |name: &String| expected.contains_key(name) || magnitudes.contains(name);
        if let Some(stray) = tensors.keys().find(|name| !is_known(name)) {
            return Err(wrong(format!("tensor {stray} is not one that the settings ask for")));
        }
        if let Some(name) = magnitudes.iter().find(|name| !tensors.contains_key(*name)) {
            return Err(wrong(format!("no tensor {name}, which use_dora = true asks for")));
        }
        for (name, rank) in &expected {
            let tensor = tensors.get(name).ok_or_else(|| wrong(format!("no tensor {name}")))?;
            let dims = tensor.dims();
            if dims.len() != 2 {
                return Err(wrong(format!("tensor {name} has shape {dims:?}, not two axes")));
            }
            if let Some((axis, r)) = rank
                && dims.get(*axis) != Some(r)
            {
                let what = if Parameter::from_name(name).is_some_and(Parameter::is_token_rows) {
                    format!("{r}, one per id of trainable_token_indices")
                } else {
                    format!("r = {r}")
                };
                return Err(wrong(format!("tensor {name} has shape {dims:?}, axis {axis} should be {what}")));
            }
        }
        if let Some(selection) = config.selection.take() {
            let blocks: Vec<usize> = layers.into_iter().collect();
            let usual = (config.lora.r, config.lora.lora_alpha);
            config.selection = Some(Box::new(selection.in_own_names(&blocks, usual)));
        }
        Ok(Self { config, tensors })
    }
}

/// Makes head and embedding one tensor where `config` says so and their values agree.
///
/// `ensure_weight_tying` is also found on adapters of a base that was never tied; there the two
/// differ, and the adapter is of the untied form.
fn share_tied(config: &mut AdapterConfig, tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
    if !config.tied {
        return Ok(());
    }
    match (tensors.get(LM_HEAD).cloned(), tensors.get(EMBED_TOKENS).cloned()) {
        (Some(head), Some(embed)) if same_values(&head, &embed)? => {
            tensors.insert(LM_HEAD.into(), embed);
        }
        (Some(_), Some(_)) => config.tied = false,
        (Some(only), None) => {
            tensors.insert(EMBED_TOKENS.into(), only);
        }
        (None, Some(only)) => {
            tensors.insert(LM_HEAD.into(), only);
        }
        (None, None) => {}
    }
    Ok(())
}

pub(super) fn same_values(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.id() == b.id() {
        return Ok(true);
    }
    if a.dims() != b.dims() || a.rank() == 0 {
        return Ok(false);
    }
    // In blocks: the embedding of the real model is 671 MB.
    const ROWS: usize = 8192;
    let bits = |tensor: &Tensor, start: usize, rows: usize| -> Result<Vec<u32>> {
        let values = tensor.narrow(0, start, rows)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(f32::to_bits).collect())
    };
    let rows = a.dims().first().copied().unwrap_or(0);
    for start in (0..rows).step_by(ROWS) {
        let count = ROWS.min(rows - start);
        if bits(a, start, count)? != bits(b, start, count)? {
            return Ok(false);
        }
    }
    Ok(true)
}
