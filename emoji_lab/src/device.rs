//! Where a model computes.

use std::fmt;

use candle_core::DType;

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::gpu::Gpu;
use crate::ops::gemm::has_bf16;

/// What [`load_model`](crate::model::load_model) puts a model on.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor, in f32.
    #[default]
    Cpu,
    /// The processor, training with products of bf16 and sums in f32: one with AVX512-BF16, as
    /// [`with_dtype`](Device::with_dtype) gives it. Answers are those of [`Device::Cpu`].
    CpuBf16,
    /// An NVIDIA GPU, or several that share work. Cells share it: cloning is a reference to the same one.
    #[cfg(feature = "cuda")]
    Cuda(Gpu),
}

/// The fastest device there is: the first GPU if this build has CUDA and the driver shows one, else
/// the CPU.
///
/// # Errors
/// [`Error::Device`] if there is a GPU, and it cannot be used.
pub fn best_device() -> Result<Device> {
    #[cfg(feature = "cuda")]
    if Gpu::count() > 0 {
        return Device::cuda(0);
    }
    Ok(Device::Cpu)
}

impl Device {
    /// The GPU number `ordinal`, computing in bf16 where it can, else in f32.
    ///
    /// # Errors
    /// [`Error::Device`] if this build has no CUDA, or driver, libraries or GPU are missing or too
    /// old.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::Cuda(Gpu::open(ordinal)?));
        #[cfg(not(feature = "cuda"))]
        Err(Error::device(
            format!("cuda:{ordinal}"),
            "this build of emoji_lab has no CUDA",
            "Build it with the `cuda` feature (first cell, or notebooks/run --cuda), or use Device::Cpu",
        ))
    }

    /// The GPUs of these numbers as one device, which share work: each takes its
    /// `per_device_train_batch_size` rows of a step, and gradients are added up by NCCL; evaluation rows and
    /// answers are dealt out to them. A step of two is that of one with twice the
    /// `gradient_accumulation_steps`.
    ///
    /// # Errors
    /// As [`Self::cuda`]; [`Error::Setting`] if none is named, or one twice; [`Error::Device`] if several are
    /// named and NCCL (libnccl.so.2) is missing or too old.
    pub fn cuda_list(ordinals: &[usize]) -> Result<Self> {
        #[cfg(feature = "cuda")]
        return Ok(Self::Cuda(Gpu::open_several(ordinals)?));
        #[cfg(not(feature = "cuda"))]
        Self::cuda(ordinals.first().copied().unwrap_or(0))
    }

    /// All GPUs that the driver shows, as [`Self::cuda_list`] has them.
    ///
    /// # Errors
    /// As [`Self::cuda_list`].
    pub fn cuda_all() -> Result<Self> {
        #[cfg(feature = "cuda")]
        let count = Gpu::count();
        #[cfg(not(feature = "cuda"))]
        let count = 0;
        // Where there is none, opening the first says why.
        Self::cuda_list(&(0..count.max(1)).collect::<Vec<_>>())
    }

    /// `"cpu"`, `"cuda"`, `"cuda:1"`, `"cuda:0,1"` for two GPUs, `"cuda:all"`, or `"auto"` for
    /// [`best_device`].
    ///
    /// # Errors
    /// [`Error::Setting`] for another name; what [`Self::cuda`] and [`Self::cuda_list`] return.
    pub fn by_name(name: &str) -> Result<Self> {
        let ordinals: Option<Vec<usize>> = match name {
            "auto" | "" => return best_device(),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(vec![0]),
            "cuda:all" => return Self::cuda_all(),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|list| list.split(',').map(|n| n.trim().parse().ok()).collect()),
        };
        match ordinals {
            Some(ordinals) => Self::cuda_list(&ordinals),
            None => Err(Error::setting(
                "device",
                name,
                "use auto, cpu, cuda, cuda:1 for the second GPU, cuda:0,1 for two, or cuda:all",
            )),
        }
    }

    /// How many devices share its work: 1, or as many GPUs as were named.
    pub fn count(&self) -> usize {
        match self {
            Self::Cpu | Self::CpuBf16 => 1,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.devices(),
        }
    }

    /// The same device computing in another type. The CPU has f32 and, where it has the instructions (AVX512-BF16),
    /// training with products of bf16; GPUs have f32 and, from compute capability 8.0 on, bf16.
    ///
    /// # Errors
    /// [`Error::Setting`] for a type the device cannot compute in, f16 always among them.
    pub fn with_dtype(&self, dtype: DType) -> Result<Self> {
        if dtype == DType::F16 {
            return Err(Error::setting(
                "dtype",
                "f16",
                "Gemma 3's activations pass 65,504 and overflow in f16: use BF16, or F32",
            ));
        }
        match self {
            Self::Cpu | Self::CpuBf16 => match dtype {
                DType::F32 => Ok(Self::Cpu),
                DType::BF16 if has_bf16() => Ok(Self::CpuBf16),
                DType::BF16 => {
                    let help = "this processor has no products of bf16 (AVX512-BF16): use F32";
                    Err(Error::setting("dtype", dtype.as_str(), help))
                }
                _ => Err(Error::setting("dtype", dtype.as_str(), "the CPU computes in F32 or BF16")),
            },
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => Ok(Self::Cuda(gpu.with_dtype(dtype)?)),
        }
    }

    /// The type the device computes in.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::CpuBf16 => DType::BF16,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.dtype(),
        }
    }

    /// Whether this is a GPU.
    pub fn is_cuda(&self) -> bool {
        !matches!(self, Self::Cpu | Self::CpuBf16)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu | Self::CpuBf16 => write!(f, "cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => write!(f, "{gpu}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_f32_and_bf16_where_it_can() {
        for device in [Device::Cpu, Device::CpuBf16] {
            assert_eq!(device.with_dtype(DType::F32).unwrap().dtype(), DType::F32);
            assert!(!device.is_cuda() && device.count() == 1 && device.to_string() == "cpu");
            match device.with_dtype(DType::BF16) {
                Ok(device) => assert!(has_bf16() && device.dtype() == DType::BF16),
                Err(error) => assert!(!has_bf16() && error.to_string().contains("AVX512-BF16"), "{error}"),
            }
            for (dtype, why) in [(DType::F16, "overflow"), (DType::F64, "F32 or BF16")] {
                let said = device.with_dtype(dtype).unwrap_err().to_string();
                assert!(said.contains("setting dtype") && said.contains(why), "{said}");
            }
        }
    }

    #[test]
    fn names() {
        assert!(matches!(Device::by_name("cpu"), Ok(Device::Cpu)));
        assert_eq!(Device::Cpu.count(), 1);
        for name in ["gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:0;1", "cuda:-1", "cuda:0,all"] {
            let said = Device::by_name(name).unwrap_err().to_string();
            assert!(said.starts_with(&format!("setting device = {name}: use auto")), "{said}");
        }
        // A list is taken for one, with GPUs or without.
        let is_gpus = |name: &str| match Device::by_name(name) {
            Ok(device) => device.is_cuda(),
            Err(error) => matches!(error, Error::Device { .. }),
        };
        assert!(["cuda:all", "cuda:0,1", "cuda:1, 0", "cuda"].into_iter().all(is_gpus));
    }
}
