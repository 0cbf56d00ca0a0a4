//! The way from a candle tensor to a plain slice, and back.

use std::sync::Mutex;

use crate::memory;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Result, Storage, Tensor};

/// Calls `f` with the values of a contiguous f32 tensor on the CPU.
pub fn read<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(values)) = &*storage else {
        candle_core::bail!("expected f32 on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device())
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => f(&values[start..end]),
        None => candle_core::bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// Calls `f` with the values of a contiguous f32 tensor on the CPU, to be changed in place.
///
/// Every tensor that shares the storage sees the change: that is how the optimizer's flat arena
/// and the model's weights are one memory.
pub fn update(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<()> + Send) -> Result<()> {
    struct Update<F>(Mutex<Option<F>>);
    impl<F: FnOnce(&mut [f32]) -> Result<()> + Send> InplaceOp1 for Update<F> {
        fn name(&self) -> &'static str {
            "update"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let CpuStorage::F32(values) = storage else { candle_core::bail!("expected f32") };
            let Some((start, end)) = layout.contiguous_offsets() else {
                candle_core::bail!("expected a contiguous tensor, got {layout:?}")
            };
            match self.0.lock().ok().and_then(|mut f| f.take()) {
                Some(f) => f(&mut values[start..end]),
                None => Ok(()),
            }
        }
    }
    tensor.inplace_op1(&Update(Mutex::new(Some(f))))
}

/// A new f32 tensor on the CPU, made of `values`.
pub fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// `len` zeros, in large pages where the system gives them.
pub fn zeros(len: usize) -> Result<Tensor> {
    tensor(memory::zeros(len), len)
}

/// Fails, with the op's name, on a device or type the op has no version for.
pub(crate) fn require_cpu_f32(op: &str, tensor: &Tensor) -> Result<()> {
    match tensor.device() {
        Device::Cpu if tensor.dtype() == DType::F32 => Ok(()),
        device => {
            candle_core::bail!("{op}: no version for {:?} on {device:?}, only f32 on the CPU", tensor.dtype())
        }
    }
}
