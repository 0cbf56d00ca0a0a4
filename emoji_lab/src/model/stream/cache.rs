//! Keys and values of a sequence that is read by streams.

use crate::model::Gemma3Config;

/// Of each layer, keys and values of the tokens that were read, `[tokens, kv_heads · head_dim]` each.
#[derive(Debug, Clone)]
pub(in crate::model) struct Cache {
    layers: Vec<(Vec<f32>, Vec<f32>)>,
    len: usize,
}

impl Cache {
    /// Of the tokens in `start`, with room for `room` more.
    #[cfg(test)]
    pub(super) fn of(
        config: &Gemma3Config,
        start: &crate::model::KvCache,
        room: usize,
    ) -> crate::Result<Self> {
        let layers = (0..config.num_hidden_layers).map(|layer| start.layer(layer));
        let start = Self { layers: layers.collect::<crate::Result<_>>()?, len: start.len() };
        Ok(start.with_room(config, room))
    }

    /// Of no tokens, with room for some.
    pub(in crate::model) fn new(config: &Gemma3Config, room: usize) -> Self {
        let none = Self { layers: vec![Default::default(); config.num_hidden_layers], len: 0 };
        none.with_room(config, room)
    }

    /// The same tokens, with room for `more`.
    pub(in crate::model) fn with_room(&self, config: &Gemma3Config, more: usize) -> Self {
        let row = config.num_key_value_heads * config.head_dim;
        let copy = |from: &Vec<f32>| {
            let mut copy = Vec::with_capacity(from.len() + more * row);
            copy.extend_from_slice(from);
            copy
        };
        let layers = self.layers.iter().map(|(keys, values)| (copy(keys), copy(values)));
        Self { layers: layers.collect(), len: self.len }
    }

    /// How many tokens are in it.
    pub(in crate::model) fn len(&self) -> usize {
        self.len
    }

    /// Counts tokens that every layer is about to add.
    pub(super) fn count(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// A layer's keys and values.
    pub(super) fn layer(&self, layer: usize) -> (&[f32], &[f32]) {
        let (keys, values) = &self.layers[layer];
        (keys, values)
    }

    /// Adds a token's keys and values to those of a layer.
    pub(super) fn add(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (all_keys, all_values) = &mut self.layers[layer];
        all_keys.extend_from_slice(keys);
        all_values.extend_from_slice(values);
    }
}
