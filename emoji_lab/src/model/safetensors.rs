//! One safetensors file: read through a memory map into f32 on the CPU, written in one stream, in
//! the layout that Python's library gives it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::cut_short::what_is_wrong;
use super::kept::{Matrix, keep};
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::host;
use crate::memory::zeros;
use crate::ops::lazy::LazyTensor;
use crate::quant::blocks::Kind;
use crate::sniff::disguise_of;

/// Values handled at a time by one thread: large enough to be worth a task, small enough that the
/// embedding (two thirds of the real model) is shared among all threads.
const CHUNK: usize = 1 << 18;

/// Values turned into bytes before they are written.
const BLOCK: usize = 16 * CHUNK;

/// Maps `path` into memory, unless it is not what its name says.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| Error::io(path, "opening the file", e))?;
    // Of an empty file the format's reader says how much is missing.
    let is_empty = file.metadata().is_ok_and(|about| about.len() == 0);
    if let Some(found) = disguise_of(path).filter(|_| !is_empty) {
        return Err(Error::model(path.display(), found.problem, found.help));
    }
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
/// anything but F32, F16, BF16 or F64.
pub fn tensors_from_bytes(
    bytes: &[u8],
    origin: &str,
    wanted: impl FnMut(&str, &[usize]) -> Result<Option<String>>,
) -> Result<BTreeMap<String, Tensor>> {
    let weights = read_bytes(bytes, origin, wanted, &|_, _| false, &|_| ())?;
    weights.into_iter().map(|(name, weight)| Ok((name, weight.to_tensor()?))).collect()
}

fn stays_in_bf16(dtype: Dtype, dims: &[usize]) -> bool {
    dtype == Dtype::BF16 && dims.len() == 2
}

/// [`tensors_from_bytes`] for a model's weights: matrices in bf16 stay in it until they are asked for.
pub(super) fn weights_from_bytes(
    bytes: &[u8],
    origin: &str,
    wanted: impl FnMut(&str, &[usize]) -> Result<Option<String>>,
) -> Result<BTreeMap<String, LazyTensor>> {
    read_bytes(bytes, origin, wanted, &stays_in_bf16, &|_| ())
}

/// [`weights_from_bytes`] of a mapped file, whose pages are given back as they have been read: with them the
/// weights would be there twice.
pub(super) fn weights_from_map(
    map: &Mmap,
    origin: &str,
    wanted: impl FnMut(&str, &[usize]) -> Result<Option<String>>,
) -> Result<BTreeMap<String, LazyTensor>> {
    read_bytes(map, origin, wanted, &stays_in_bf16, &|part| give_back(map, part))
}

/// Gives the pages of `part` back to the system, which reads them anew where they are asked for again.
fn give_back(map: &Mmap, part: &[u8]) {
    #[cfg(unix)]
    {
        let offset = part.as_ptr().addr() - map.as_ptr().addr();
        // A wish: what comes of it is not needed.
        // SAFETY: the pages are a file's, mapped to be read alone: what is given back is not lost.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, part.len()) };
    }
    #[cfg(not(unix))]
    let _ = (map, part);
}

/// The tensors that `wanted` says yes to; those that `stays` says yes to as copies of the file's bf16. `done` is
/// told which bytes have been read.
fn read_bytes(
    bytes: &[u8],
    origin: &str,
    mut wanted: impl FnMut(&str, &[usize]) -> Result<Option<String>>,
    stays: &dyn Fn(Dtype, &[usize]) -> bool,
    done: &dyn Fn(&[u8]),
) -> Result<BTreeMap<String, LazyTensor>> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| {
        let (problem, help) = what_is_wrong(bytes, &e.to_string());
        Error::model(origin, problem, help)
    })?;
    let mut found = BTreeMap::new();
    let mut kept = vec![];
    let mut views = file.tensors();
    // The library's order is a hash's: of several faults it would name another one each time.
    views.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, view) in &views {
        let Some(keep_as) = wanted(name, view.shape())? else { continue };
        let width = match view.dtype() {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            Dtype::F64 => 8,
            other => {
                return Err(Error::model(
                    origin,
                    format!("tensor {name} is stored as {other:?}"),
                    "F32, F16 and BF16 are read here: choose the unquantised model",
                ));
            }
        };
        if stays(view.dtype(), view.shape()) {
            let dims = (view.shape()[0], view.shape()[1]);
            kept.push(Matrix { name: keep_as, kind: Kind::BF16, bytes: view.data(), dims });
            continue;
        }
        let mut values = zeros(view.data().len() / width);
        fill_f32(view.dtype(), view.data(), &mut values);
        done(view.data());
        found.insert(keep_as, host::tensor(values, view.shape())?.into());
    }
    found.extend(keep(kept, done)?);
    Ok(found)
}

/// How long the safetensors file at `path` must be by its header; `None` if it has none.
pub(crate) fn safetensors_len(path: &Path) -> Option<u64> {
    use std::io::Read;

    let mut file = std::fs::File::open(path).ok()?;
    let there = file.metadata().ok()?.len();
    let mut len = [0; 8];
    file.read_exact(&mut len).ok()?;
    let header = u64::from_le_bytes(len);
    if header > there {
        return None;
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).ok()?;
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text).ok()?;
    let ends = fields.values().filter_map(|field| field.get("data_offsets")?.get(1)?.as_u64());
    (8 + header).checked_add(ends.max().unwrap_or(0))
}

/// Every tensor of the file `path`; else as [`tensors_from_bytes`].
pub(crate) fn read_safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = map_file(path)?;
    tensors_from_bytes(&bytes, &path.display().to_string(), |name, _| Ok(Some(name.to_string())))
}

/// Converts `bytes` (F32, F16, BF16 or F64, little-endian) to `values`, in parallel.
fn fill_f32(dtype: Dtype, bytes: &[u8], values: &mut [f32]) {
    let width = match dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        _ => 2,
    };
    values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * width)).for_each(|(out, raw)| match dtype {
        Dtype::F32 => {
            for (value, b) in out.iter_mut().zip(raw.chunks_exact(4)) {
                *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        Dtype::F64 => {
            for (value, b) in out.iter_mut().zip(raw.chunks_exact(8)) {
                *value = f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
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
/// asks for. Bytes depend on names and values alone, and are those of Python's library.
///
/// # Errors
/// [`Error::Model`] for another dtype, [`Error::Io`] if the file cannot be written.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    dtype: Option<DType>,
) -> Result<()> {
    let path = path.as_ref();
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let kind = match (tensor.dtype(), dtype) {
            (is, Some(wanted)) if is.is_float() => wanted,
            (is, _) => is,
        };
        let label = match kind {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::U8 => Dtype::U8,
            DType::U32 => Dtype::U32,
            DType::I64 => Dtype::I64,
            other => {
                return Err(Error::model(
                    path.display(),
                    format!("tensor {name} cannot be written as {other:?}"),
                    "F32, BF16, F16, U8, U32 and I64 can",
                ));
            }
        };
        stored.push((name, tensor, kind, label));
    }
    // The library's order: wider types first, for alignment, then names.
    stored.sort_by(|a, b| b.3.cmp(&a.3).then(a.0.cmp(b.0)));
    let mut header = Map::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut offset = 0usize;
    for (name, tensor, kind, label) in &stored {
        let end = offset + tensor.elem_count() * kind.size_in_bytes();
        let entry = json!({"dtype": label, "shape": tensor.dims(), "data_offsets": [offset, end]});
        header.insert((*name).clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    // The format wants the data to start at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');

    write_atomic(path, |out| {
        out.write_all(&(text.len() as u64).to_le_bytes())?;
        out.write_all(&text)?;
        for (_, tensor, kind, _) in &stored {
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
        // In blocks, so that the embedding's bytes are not in memory once more as a whole.
        let mut bytes = vec![0u8; values.len().min(BLOCK) * N];
        for block in values.chunks(BLOCK) {
            let bytes = &mut bytes[..block.len() * N];
            bytes.par_chunks_mut(CHUNK * N).zip(block.par_chunks(CHUNK)).for_each(|(raw, part)| {
                for (slot, &value) in raw.chunks_exact_mut(N).zip(part) {
                    slot.copy_from_slice(&to_bytes(value));
                }
            });
            out.write_all(bytes)?;
        }
        Ok(())
    }
    // The common case, and the largest files: the bytes in memory are the bytes in the file.
    if cfg!(target_endian = "little")
        && kind == DType::F32
        && tensor.dtype() == kind
        && tensor.is_contiguous()
    {
        let mut result = Ok(());
        let read = host::read(tensor, |values| {
            // SAFETY: any four bytes of an f32 are four bytes.
            let bytes =
                unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
            result = out.write_all(bytes);
            Ok(())
        });
        return read.map_err(std::io::Error::other).and(result);
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

#[cfg(test)]
mod tests {
    use super::*;

    // safetensors 0.8 of Python: save_file of these tensors with metadata={"format": "pt"}.
    const PYTHON: &str = "38010000000000007b225f5f6d657461646174615f5f223a7b22666f726d6174223a227074227d2c2263223a\
        7b226474797065223a22493634222c227368617065223a5b315d2c22646174615f6f666673657473223a5b30\
        2c385d7d2c2262223a7b226474797065223a22463332222c227368617065223a5b322c325d2c22646174615f\
        6f666673657473223a5b382c32345d7d2c2265223a7b226474797065223a22553332222c227368617065223a\
        5b315d2c22646174615f6f666673657473223a5b32342c32385d7d2c2264223a7b226474797065223a224246\
        3136222c227368617065223a5b315d2c22646174615f6f666673657473223a5b32382c33305d7d2c2261223a\
        7b226474797065223a225538222c227368617065223a5b335d2c22646174615f6f666673657473223a5b3330\
        2c33335d7d7d202020202020f9ffffffffffffff0000c03f00000080ffff7f7f0100000009000000003f0102\
        03";

    #[test]
    fn the_bytes_are_those_of_python() {
        let cpu = &Device::Cpu;
        let tensors = BTreeMap::from([
            ("a".to_string(), Tensor::new(&[1u8, 2, 3], cpu).unwrap()),
            ("b".to_string(), Tensor::new(&[[1.5f32, -0.0], [f32::MAX, 1e-45]], cpu).unwrap()),
            ("c".to_string(), Tensor::new(&[-7i64], cpu).unwrap()),
            ("d".to_string(), Tensor::new(&[0.5f32], cpu).unwrap().to_dtype(DType::BF16).unwrap()),
            ("e".to_string(), Tensor::new(&[9u32], cpu).unwrap()),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.safetensors");
        write_safetensors(&path, &tensors, None).unwrap();
        let hex: String = std::fs::read(&path).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, PYTHON);
    }

    #[test]
    fn every_bit_of_more_than_a_block_comes_back() {
        let bits = |i: u32| f32::from_bits(i.wrapping_mul(2_654_435_761));
        let len = BLOCK + CHUNK + 3;
        let values: Vec<f32> = (0..len as u32).map(bits).collect();
        let tensors =
            BTreeMap::from([("x".to_string(), Tensor::from_vec(values, len, &Device::Cpu).unwrap())]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.safetensors");
        write_safetensors(&path, &tensors, None).unwrap();
        let back = read_safetensors(&path).unwrap()["x"].to_vec1::<f32>().unwrap();
        assert!(back.len() == len && (0..len).all(|i| back[i].to_bits() == bits(i as u32).to_bits()));
    }
}
