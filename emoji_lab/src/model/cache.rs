//! Keys and values of the tokens seen so far, for generation.

use candle_core::{DType, Device, Tensor};

use super::Gemma3Config;
use crate::error::Result;
#[cfg(test)]
use crate::host;

/// One sequence's keys and values, layer by layer, with room for a fixed number of tokens.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// Room for `capacity` tokens.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(config: &Gemma3Config, capacity: usize) -> Result<Self> {
        let shape = (capacity.max(1), config.num_key_value_heads, config.head_dim);
        let buffer = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let layers = (0..config.num_hidden_layers)
            .map(|_| Ok((buffer()?, buffer()?)))
            .collect::<candle_core::Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// A layer's keys and values of the tokens that are in it, `[tokens, kv_heads, head_dim]` each.
    #[cfg(test)]
    pub(super) fn layer(&self, layer: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let Some((keys, values)) = self.layers.get(layer) else { return Ok(Default::default()) };
        let there = |tensor: &Tensor| {
            let row = tensor.elem_count() / tensor.dim(0)?;
            host::read(tensor, |all| Ok(all[..self.len * row].to_vec()))
        };
        Ok((there(keys)?, there(values)?))
    }

    /// How many tokens are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tokens fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Makes room for `more` tokens after those that are there: at least twice the room there was.
    ///
    /// Room is made as it is used, so that the most tokens that somebody allows, or that a model's
    /// settings ask for, are not what is allocated.
    pub(super) fn make_room(&mut self, more: usize) -> Result<()> {
        let needed = self.len + more;
        if needed <= self.capacity {
            return Ok(());
        }
        let capacity = needed.max(2 * self.capacity);
        for (keys, values) in &mut self.layers {
            for tensor in [keys, values] {
                let (_, heads, width) = tensor.dims3()?;
                let larger = Tensor::zeros((capacity, heads, width), DType::F32, &Device::Cpu)?;
                if self.len > 0 {
                    larger.slice_set(&tensor.narrow(0, 0, self.len)?, 0, 0)?;
                }
                *tensor = larger;
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Begins with the tokens that are in `start`, a cache of the same model; this one is empty.
    pub(super) fn begin_with(&mut self, start: &Self) -> Result<()> {
        self.make_room(start.len)?;
        if start.len > 0 {
            for ((keys, values), (its_keys, its_values)) in self.layers.iter().zip(&start.layers) {
                keys.slice_set(&its_keys.narrow(0, 0, start.len)?, 0, 0)?;
                values.slice_set(&its_values.narrow(0, 0, start.len)?, 0, 0)?;
            }
        }
        self.len = start.len;
        Ok(())
    }

    /// Puts a layer's new keys and values after those it has; returns all of them.
    pub(super) fn append(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> candle_core::Result<(Tensor, Tensor)> {
        let new = k.dim(0)?;
        let Some((keys, values)) = self.layers.get(layer).filter(|_| self.len + new <= self.capacity) else {
            candle_core::bail!("key/value cache: {} + {new} tokens in room for {}", self.len, self.capacity)
        };
        keys.slice_set(k, 0, self.len)?;
        values.slice_set(v, 0, self.len)?;
        Ok((keys.narrow(0, 0, self.len + new)?, values.narrow(0, 0, self.len + new)?))
    }

    /// Counts tokens that every layer has appended.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }
}
