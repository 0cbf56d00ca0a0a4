//! Token embedding, scaled: `y[t] = scale · table[ids[t]]`.

mod cpu;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod cuda;
#[cfg(all(test, feature = "cuda"))]
mod cuda_tests;

use candle_core::{Result, Tensor};

use super::lazy::LazyTensor;
use super::replaced::Replaced;
use crate::host;

/// Rows of `table` `[vocab, hidden]` for `ids`, times `scale`: `[tokens, hidden]`.
///
/// # Errors
/// If an id is not below `vocab`, or there is no version for the tensor's device.
pub fn forward(ids: &[u32], table: &Tensor, scale: f64) -> Result<Tensor> {
    forward_replaced(ids, &table.clone().into(), None, scale)
}

/// [`forward`] with some of the table's rows taken from elsewhere. Of a table in its file's form no others are made.
///
/// # Errors
/// As [`forward`]; if the rows are not as wide as the table's.
pub fn forward_replaced(
    ids: &[u32],
    table: &LazyTensor,
    replaced: Option<Replaced<'_>>,
    scale: f64,
) -> Result<Tensor> {
    let (vocab, hidden) = table.dims2()?;
    let mut out = vec![0.0; ids.len() * hidden];
    check(ids, vocab)?;
    table.rows_into(ids, &mut out)?;
    if let Some(replaced) = replaced {
        check_width(replaced.rows(), hidden)?;
        host::read(replaced.rows(), |rows| {
            cpu::replace(ids, &mut out, replaced.ids(), rows, hidden);
            Ok(())
        })?;
    }
    out.iter_mut().for_each(|value| *value *= scale as f32);
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

/// Adds the gradient of [`forward_replaced`] for the rows in place of the table's `rows` (ascending) into
/// `drows` `[rows, hidden]`.
///
/// # Errors
/// If shapes do not fit.
pub fn backward_rows(ids: &[u32], dy: &Tensor, scale: f64, rows: &[u32], drows: &Tensor) -> Result<()> {
    host::require_cpu_f32("embedding", drows)?;
    let (count, hidden) = drows.dims2()?;
    if count != rows.len() {
        candle_core::bail!("{} rows of an embedding with a gradient of {count}", rows.len())
    }
    check_width(dy, hidden)?;
    host::read(dy, |dy| {
        host::update(drows, |drows| {
            cpu::backward_rows(ids, dy, rows, hidden, scale as f32, drows);
            Ok(())
        })
    })
}

fn check_width(rows: &Tensor, hidden: usize) -> Result<()> {
    match rows.dims2()? {
        (_, width) if width == hidden => Ok(()),
        (_, width) => candle_core::bail!("rows of {width} numbers in an embedding of {hidden}"),
    }
}

fn check(ids: &[u32], vocab: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        Some(id) => candle_core::bail!("token id {id} is outside the vocabulary of {vocab}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::finite_difference::{Check, random};

    #[test]
    fn replaced_rows_are_read_and_learn() -> Result<()> {
        let (table, rows) = (random(1, (7, 3))?, random(2, (2, 3))?);
        let lazy = LazyTensor::from(table.clone());
        let (ids, places) = ([5u32, 0, 2, 5], [2u32, 5]);
        let at = Tensor::new(&places, table.device())?;
        // The table with the rows put in.
        let whole = |rows: &Tensor| -> Result<Tensor> {
            let mut parts: Vec<Tensor> = (0..7).map(|i| table.narrow(0, i, 1)).collect::<Result<_>>()?;
            (parts[2], parts[5]) = (rows.narrow(0, 0, 1)?, rows.narrow(0, 1, 1)?);
            Tensor::cat(&parts, 0)
        };
        let replaced = Replaced::new(&places, &rows)?;
        let out = forward_replaced(&ids, &lazy, Some(replaced), 2.0)?;
        assert_eq!(out.to_vec2::<f32>()?, forward(&ids, &whole(&rows)?, 2.0)?.to_vec2::<f32>()?);

        let (dy, drows, dtable) = (random(3, (4, 3))?, rows.zeros_like()?, table.zeros_like()?);
        backward_rows(&ids, &dy, 2.0, &places, &drows)?;
        backward(&ids, &dy, 2.0, &dtable)?;
        assert_eq!(drows.to_vec2::<f32>()?, dtable.index_select(&at, 0)?.to_vec2::<f32>()?);
        Check::new("rows").run(&rows, &drows, |rows| {
            let rows = rows.contiguous()?;
            (forward_replaced(&ids, &lazy, Some(Replaced::new(&places, &rows)?), 2.0)? * &dy)?.sum_all()
        })
    }

    #[test]
    fn what_does_not_fit_is_an_error() -> Result<()> {
        let (table, rows) = (random(1, (7, 3))?, random(2, (2, 3))?);
        assert!(Replaced::new(&[5, 2], &rows).is_err() && Replaced::new(&[2, 2], &rows).is_err());
        assert!(Replaced::new(&[1], &rows).is_err());
        let narrow = random(2, (1, 2))?;
        assert!(forward_replaced(&[1], &table.into(), Some(Replaced::new(&[1], &narrow)?), 1.0).is_err());
        assert!(backward_rows(&[1], &random(3, (1, 3))?, 1.0, &[1, 2], &narrow).is_err());
        Ok(())
    }
}
