//! The model's forward pass with caches: what generation repeats.

use candle_core::Tensor;

use super::layer::Pass;
use super::{Gemma3, KvCache};
use crate::error::{Error, Result};
use crate::host;
use crate::ops::attention::Segment;
use crate::ops::embedding;
use crate::ops::lora_linear::{self, Weight};
use crate::ops::replaced::put_columns;

impl Gemma3 {
    /// Feeds the next tokens of the sequence in `cache`; returns the logits `[vocab]` that follow
    /// the last of them.
    ///
    /// # Errors
    /// If `ids` is empty, outside the vocabulary, or more than the cache has room for.
    pub fn decode(&self, ids: &[u32], cache: &mut KvCache) -> Result<Tensor> {
        Ok(self.decode_rows(&[ids], std::slice::from_mut(cache))?.squeeze(0)?)
    }

    /// [`Self::decode`] for several sequences at once, each with its own number of tokens and its own
    /// cache; returns the logits `[sequences, vocab]`.
    ///
    /// Every weight is read once for all of them, so a step of a few costs little more than that of one.
    /// A sequence's logits are the same, bit for bit, alone and among others.
    ///
    /// # Errors
    /// As [`Self::decode`]; also if there is no sequence, or not a cache for each.
    pub fn decode_rows(&self, rows: &[&[u32]], caches: &mut [KvCache]) -> Result<Tensor> {
        self.logits(&self.read_rows(rows, caches)?)
    }

    /// [`Self::decode_rows`] up to the head: the last hidden states `[sequences, hidden]`.
    pub(super) fn read_rows(&self, rows: &[&[u32]], caches: &mut [KvCache]) -> Result<Tensor> {
        if rows.is_empty() || rows.len() != caches.len() || rows.iter().any(|ids| ids.is_empty()) {
            return Err(Error::setting(
                "rows",
                format!("{} for {} caches", rows.len(), caches.len()),
                "give at least one row, a cache for each, and each at least one token",
            ));
        }
        let (mut positions, mut segments, mut last) = (vec![], vec![], vec![]);
        for (ids, cache) in rows.iter().zip(caches.iter()) {
            let (start, end) = (cache.len(), cache.len() + ids.len());
            segments.push(Segment { q_start: positions.len(), q_len: ids.len(), k_start: 0, k_len: end });
            positions.extend((start..end).map(|p| p as u32));
            last.push(positions.len() as u32 - 1);
        }
        let (global, local) = self.rope_tables(&positions)?;
        let pass =
            Pass { config: &self.config, segments: &segments, global: &global, local: &local, dropout: None };
        let stored = self.on_device.on_host(self)?;
        let mut x = self.embed(&rows.concat())?;
        for layer in &self.layers {
            x = layer.forward(x, &pass, Some((caches, &stored)))?.0;
        }
        for (ids, cache) in rows.iter().zip(caches) {
            cache.advance(ids.len());
        }
        let last = x.index_select(&Tensor::new(last, x.device())?, 0)?;
        Ok(self.norm.forward(&last)?.0)
    }

    /// The rows of the head's weight for some tokens, `[tokens, hidden]`.
    pub(super) fn head_rows(&self, tokens: &[u32]) -> Result<Tensor> {
        Ok(embedding::forward_replaced(tokens, &self.head().value, self.rows_in_head()?, 1.0)?)
    }

    /// Logits `[rows, vocab]` of hidden states `[rows, hidden]`, each row's as if it were alone.
    ///
    /// # Errors
    /// If the width is not the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let stored = self.on_device.on_host(self)?;
        let head = self.head().value.clone();
        let in_few_bits = stored.get(&head);
        let logits = lora_linear::forward_stored(hidden, &Weight::Dense(head.clone()), in_few_bits, None)?;
        if let Some(replaced) = self.rows_in_head()? {
            let columns = lora_linear::forward_by_row(hidden, &replaced.rows().clone().into(), None)?;
            let vocab = self.config.vocab_size;
            host::read(&columns, |columns| {
                host::update(&logits, |logits| {
                    put_columns(logits, columns, replaced.ids(), vocab);
                    Ok(())
                })
            })?;
        }
        Ok(logits)
    }
}
