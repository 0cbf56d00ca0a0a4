//! One safetensors file: read through a memory map into f32 on the CPU, written in one stream.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::write_atomic;

/// Values handled at a time by one thread: large enough to be worth a task, small enough that the
/// embedding (two thirds of the real model) is shared among all threads.
const CHUNK: usize = 1 << 18;

/// Maps `path` into memory.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, "opening the file", e))?;
    // SAFETY: the map is read only. Another program that shortens the file while it is read would
    // crash this one; every reader of model files by memory map takes that risk.
    unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "mapping the file", e))
}

/// The tensors of a safetensors file that `wanted` says yes to, by name, in f32 on the CPU.
///
/// `wanted` gets each tensor's name and shape; it returns the name to keep it under, `None` to
/// pass over it, or an error. `origin` names the file in errors.
///
/// # Errors
/// [`Error::Model`] if the bytes are not a whole safetensors file, or a wanted tensor is stored as
/// anything but F32, F16 or BF16.
pub fn tensors_from_bytes(
    bytes: &[u8],
    origin: &str,
    mut wanted: impl FnMut(&str, &[usize]) -> Result<Option<String>>,
) -> Result<BTreeMap<String, Tensor>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        Error::model(
            origin,
            format!("damaged or cut short, {} bytes ({e})", bytes.len()),
            "Fetch or save the file again",
        )
    })?;
    let mut found = BTreeMap::new();
    let mut views = file.tensors();
    // The library's order is a hash's: of several faults it would name another one each time.
    views.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, view) in &views {
        let Some(keep_as) = wanted(name, view.shape())? else { continue };
        let width = match view.dtype() {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => {
                return Err(Error::model(
                    origin,
                    format!("tensor {name} is stored as {other:?}"),
                    "F32, F16 and BF16 are read here: choose the unquantised model",
                ));
            }
        };
        let mut values = vec![0f32; view.data().len() / width];
        fill_f32(view.dtype(), view.data(), &mut values);
        found.insert(keep_as, Tensor::from_vec(values, view.shape(), &Device::Cpu)?);
    }
    Ok(found)
}

/// Converts `bytes` (F32, F16 or BF16, little-endian) to `values`, in parallel.
fn fill_f32(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    let width = if dtype == Dtype::F32 { 4 } else { 2 };
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * width)).for_each(|(out, raw)| match dtype {
        Dtype::F32 => {
            for (value, b) in out.iter_mut().zip(raw.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Dtype::F16 => {
            for (value, b) in out.iter_mut().zip(raw.chunks_exact(2)) {
                *value = half::f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        _ => {
            for (value, b) in out.iter_mut().zip(raw.chunks_exact(2)) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            }
        }
    });
}

/// Writes `tensors` as the safetensors file `path`, whole or not at all.
///
/// Tensors of floats are written as `dtype` (F32, BF16 or F16), or as they are if it is `None`;
/// U8, U32 and I64 stay what they are. The file's metadata is `format: pt`, which transformers
/// asks for.
///
/// # Errors
/// [`Error::Model`] for another dtype, [`Error::Io`] if the file cannot be written.
pub fn write_safetensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut offset = 0usize;
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = match (tensor.dtype(), dtype) {
            (is, Some(wanted)) if is.is_float() => wanted,
            (is, _) => is,
        };
        let label = match kind {
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::U8 => "U8",
            DType::U32 => "U32",
            DType::I64 => "I64",
            other => {
                return Err(Error::model(
                    path.display(),
                    format!("tensor {name} cannot be written as {other:?}"),
                    "F32, BF16, F16, U8, U32 and I64 can",
                ));
            }
        };
        let end = offset + tensor.elem_count() * kind.size_in_bytes();
        let entry = json!({"dtype": label, "shape": tensor.dims(), "data_offsets": [offset, end]});
        header.insert(name.clone(), entry);
        stored.push((tensor, kind));
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // The format wants the data to start at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');

    write_atomic(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        for (tensor, kind) in &stored {
            write_values(out, tensor, *kind)?;
        }
        Ok(())
    })
}

fn write_values(out: &mut dyn Write, tensor: &Tensor, kind: DType) -> std::io::Result<()> {
    fn put<T: Copy + Sync, const N: usize>(
        out: &mut dyn Write,
        values: &[T],
        to_bytes: impl Fn(T) -> [u8; N] + Sync,
    ) -> std::io::Result<()> {
        let mut bytes = vec![0u8; values.len() * N];
        bytes.par_chunks_mut(CHUNK * N).zip(values.par_chunks(CHUNK)).for_each(|(raw, part)| {
            for (slot, &value) in raw.chunks_exact_mut(N).zip(part) {
                slot.copy_from_slice(&to_bytes(value));
            }
        });
        out.write_all(&bytes)
    }
    // A tensor on a GPU or of another dtype is converted one at a time, so that the peak is one
    // tensor and not a second model.
    let fetch = || tensor.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(kind);
    let flat = fetch().map_err(std::io::Error::other)?;
    let wrong = std::io::Error::other;
    match kind {
        DType::F32 => put(out, &flat.to_vec1::<f32>().map_err(wrong)?, f32::to_le_bytes),
        DType::BF16 => put(out, &flat.to_vec1::<half::bf16>().map_err(wrong)?, half::bf16::to_le_bytes),
        DType::F16 => put(out, &flat.to_vec1::<half::f16>().map_err(wrong)?, half::f16::to_le_bytes),
        DType::U8 => out.write_all(&flat.to_vec1::<u8>().map_err(wrong)?),
        DType::U32 => put(out, &flat.to_vec1::<u32>().map_err(wrong)?, u32::to_le_bytes),
        _ => put(out, &flat.to_vec1::<i64>().map_err(wrong)?, i64::to_le_bytes),
    }
}
