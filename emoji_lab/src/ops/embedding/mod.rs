//! Token embedding, scaled: `y[t] = scale · table[ids[t]]`.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

use candle_core::{Result, Tensor};

use crate::host;

/// Rows of `table` `[vocab, hidden]` for `ids`, times `scale`: `[tokens, hidden]`.
///
/// # Errors
/// If an id is not below `vocab`, or there is no version for the tensor's device.
pub fn forward(ids: &[u32], table: &Tensor, scale: f64) -> Result<Tensor> {
    host::require_cpu_f32("embedding", table)?;
    let (vocab, hidden) = table.dims2()?;
    check(ids, vocab)?;
    let out = host::read(table, |table| Ok(cpu::forward(ids, table, hidden, scale as f32)))?;
    host::tensor(out, (ids.len(), hidden))
}

/// Adds the gradient of [`forward`] for the table into `dtable` `[vocab, hidden]`.
///
/// # Errors
/// As [`forward`].
pub fn backward(ids: &[u32], dy: &Tensor, scale: f64, dtable: &Tensor) -> Result<()> {
    host::require_cpu_f32("embedding", dtable)?;
    let (vocab, hidden) = dtable.dims2()?;
    check(ids, vocab)?;
    host::read(dy, |dy| {
        host::update(dtable, |dtable| {
            cpu::backward(ids, dy, hidden, scale as f32, dtable);
            Ok(())
        })
    })
}

fn check(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => candle_core::bail!("token id {id} is outside the vocabulary of {vocab}"),
        None => Ok(()),
    }
}
