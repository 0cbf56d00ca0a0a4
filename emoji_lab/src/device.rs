//! Where a model computes.

use std::fmt;

use candle_core::DType;

use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::gpu::Gpu;

/// What [`load_model`](crate::model::load_model) puts a model on.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Device {
    /// The processor, in f32.
    #[default]
    Cpu,
    /// An NVIDIA GPU. Cells share it: cloning is a reference to the same one.
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

    /// `"cpu"`, `"cuda"`, `"cuda:1"`, or `"auto"` for [`best_device`].
    ///
    /// # Errors
    /// [`Error::Setting`] for another name; what [`Self::cuda`] returns.
    pub fn by_name(name: &str) -> Result<Self> {
        let ordinal = match name {
            "auto" | "" => return best_device(),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse().ok()),
        };
        match ordinal {
            Some(ordinal) => Self::cuda(ordinal),
            None => Err(Error::setting("device", name, "use auto, cpu, cuda, or cuda:1 for the second GPU")),
        }
    }

    /// The same device computing in another type. The CPU has f32, GPUs have f32 and, from compute
    /// capability 8.0 on, bf16.
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
            Self::Cpu if dtype == DType::F32 => Ok(Self::Cpu),
            Self::Cpu => Err(Error::setting("dtype", dtype.as_str(), "the CPU computes in F32")),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => Ok(Self::Cuda(gpu.with_dtype(dtype)?)),
        }
    }

    /// The type the device computes in.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => gpu.dtype(),
        }
    }

    /// Whether this is a GPU.
    pub fn is_cuda(&self) -> bool {
        !matches!(self, Self::Cpu)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            #[cfg(feature = "cuda")]
            Self::Cuda(gpu) => write!(f, "{gpu}"),
        }
    }
}
