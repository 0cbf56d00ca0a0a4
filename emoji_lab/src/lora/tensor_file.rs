//! Named tensors in one safetensors file, in the layout Python's library gives it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo, View};

use crate::error::{Error, Result};
use crate::files::write_atomic;

/// Writes `tensors` to `path`, tensor by tensor: never a second copy of them all in memory.
///
/// Bytes depend on names and values alone, so equal tensors make equal files.
pub(crate) fn write_tensors(path: &Path, tensors: &BTreeMap<String, &Tensor>) -> Result<()> {
    let fail = |problem: String| Error::model(path.display(), problem, "This is a fault of emoji_lab");
    let mut sorted: Vec<(&String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name, *tensor)).collect();
    // The library's order: wider types first, for alignment, then names.
    sorted.sort_by(|(left, a), (right, b)| View::dtype(b).cmp(&View::dtype(a)).then(left.cmp(right)));
    let mut end = 0;
    let info = sorted.iter().map(|(name, tensor)| {
        let start = end;
        end += tensor.data_len();
        let info = TensorInfo {
            dtype: View::dtype(tensor),
            shape: tensor.dims().to_vec(),
            data_offsets: (start, end),
        };
        ((*name).clone(), info)
    });
    let format = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(format), info.collect()).map_err(|e| fail(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| fail(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomic(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in &sorted {
            let on_cpu = tensor.to_device(&Device::Cpu).and_then(|tensor| tensor.contiguous());
            out.write_all(&on_cpu.map_err(std::io::Error::other)?.data())?;
        }
        Ok(())
    })
}

/// Every tensor of the safetensors file `path`, on the CPU in the type it has there.
pub(crate) fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = File::open(path).map_err(|e| Error::io(path, "reading the tensors", e))?;
    // SAFETY: the map is read-only and dropped before this returns. Nobody writes into such files
    // in place: they are made under another name and renamed.
    let map = unsafe { memmap2::Mmap::map(&file) };
    let map = map.map_err(|e| Error::io(path, "reading the tensors", e))?;
    let damaged = |problem: String| {
        let help = "The file is cut short or damaged; take or write it again";
        Error::model(path.display(), problem, help)
    };
    let parsed = SafeTensors::deserialize(&map)
        .map_err(|e| damaged(format!("not readable as safetensors ({e}, {} bytes)", map.len())))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in parsed.iter() {
        let tensor = view.load(&Device::Cpu).map_err(|e| damaged(format!("tensor {name}: {e}")))?;
        tensors.insert(name.to_string(), tensor);
    }
    Ok(tensors)
}

/// [`read_tensors`] for files that hold nothing but weights: as f32.
pub(crate) fn read_f32_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = read_tensors(path)?;
    for (name, tensor) in &mut tensors {
        if !matches!(tensor.dtype(), DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
            let problem = format!("tensor {name} has type {:?}", tensor.dtype());
            return Err(Error::model(path.display(), problem, "Weights are F32, BF16 or F16"));
        }
        *tensor = tensor.to_dtype(DType::F32)?;
    }
    Ok(tensors)
}
