//! Matrix products by cuBLAS, on row-major matrices.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublas::{result, sys};
use cudarc::driver::CudaStream;

use super::graph::no_capture_elsewhere;
use super::pointer::{Compute, DevicePtr};
use super::{Gpu, driver_errors};
use crate::error::{Error, Result};

/// cuBLAS' workspace: NVIDIA's advice for Hopper. Ours, and one: a graph holds its address.
const WORKSPACE: usize = 32 << 20;

/// A cuBLAS handle on the GPU's stream.
pub struct Blas {
    handle: sys::cublasHandle_t,
    workspace: u64,
}

impl Blas {
    pub fn new(stream: &Arc<CudaStream>, device: &str) -> Result<Self> {
        let fail = |e: result::CublasError| {
            let (problem, help) = driver_errors::of_cublas(e.0 as u32, driver_errors::cublas_version());
            Error::device(device, problem, help)
        };
        // Owned from the beginning: what fails further down gives it back.
        let mut blas = Self { handle: result::create_handle().map_err(fail)?, workspace: 0 };
        // SAFETY: handle and stream are alive; the workspace is freed after both, in `drop`.
        unsafe {
            result::set_stream(blas.handle, stream.cu_stream().cast()).map_err(fail)?;
            blas.workspace = cudarc::driver::result::malloc_sync(WORKSPACE).map_err(|e| {
                Error::device(
                    device,
                    super::handle::describe(e.0),
                    "Close what else is on the GPU (nvidia-smi)",
                )
            })?;
            sys::cublasSetWorkspace_v2(blas.handle, blas.workspace as *mut c_void, WORKSPACE)
                .result()
                .map_err(fail)?;
        }
        Ok(blas)
    }

    /// What it takes of the GPU's memory.
    pub fn workspace_bytes(&self) -> usize {
        if self.workspace == 0 { 0 } else { WORKSPACE }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more; cuBLAS waits for what it has under way.
        unsafe {
            let _ = result::destroy_handle(self.handle);
            if self.workspace != 0 {
                let _ = cudarc::driver::result::free_sync(self.workspace);
            }
        }
    }
}

/// A row-major matrix: where it begins, and how many values its rows are apart.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<T> {
    start: DevicePtr<T>,
    ld: usize,
}

/// A row-major matrix.
pub fn matrix<T>(start: DevicePtr<T>, ld: usize) -> Matrix<T> {
    Matrix { start, ld }
}

/// A factor of a product.
#[derive(Debug, Clone, Copy)]
pub struct Factor {
    stored: Matrix<Compute>,
    transposed: bool,
}

impl Matrix<Compute> {
    /// Its transpose, as a factor.
    pub fn transposed(self) -> Factor {
        Factor { stored: self, transposed: true }
    }
}

impl From<Matrix<Compute>> for Factor {
    fn from(stored: Matrix<Compute>) -> Self {
        Self { stored, transposed: false }
    }
}

/// Where a product goes.
#[derive(Debug, Clone, Copy)]
pub enum Out {
    Compute(Matrix<Compute>),
    F32(Matrix<f32>),
    /// Added to what is there.
    AddCompute(Matrix<Compute>),
    /// Added to what is there.
    AddF32(Matrix<f32>),
}

/// Row-major `out [m, n] = a · b`, where `a` is `[m, k]` and `b` is `[k, n]`.
///
/// # Safety
/// The matrices must be as large as `m`, `n`, `k` and their `ld` say, on this GPU.
pub unsafe fn gemm(
    gpu: &Gpu,
    (m, n, k): (usize, usize, usize),
    a: impl Into<Factor>,
    b: impl Into<Factor>,
    out: Out,
) -> Result<()> {
    use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
    let (a, b): (Factor, Factor) = (a.into(), b.into());
    let op = |factor: Factor| if factor.transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
    let f32_type = sys::cudaDataType::CUDA_R_32F;
    let compute = if gpu.bf16() { sys::cudaDataType::CUDA_R_16BF } else { f32_type };
    let (c, ldc, c_type, beta) = match out {
        Out::Compute(c) => (c.start.address(), c.ld, compute, 0f32),
        Out::F32(c) => (c.start.address(), c.ld, f32_type, 0f32),
        Out::AddCompute(c) => (c.start.address(), c.ld, compute, 1f32),
        Out::AddF32(c) => (c.start.address(), c.ld, f32_type, 1f32),
    };
    let alpha = 1f32;
    let _guard = no_capture_elsewhere();
    // cuBLAS is column-major: a row-major matrix is its own transpose there, and cᵀ = bᵀ · aᵀ.
    // SAFETY: the caller's.
    unsafe {
        result::gemm_ex(
            gpu.blas().handle,
            op(b),
            op(a),
            n as i32,
            m as i32,
            k as i32,
            (&raw const alpha).cast(),
            b.stored.start.address() as *const c_void,
            compute,
            b.stored.ld as i32,
            a.stored.start.address() as *const c_void,
            compute,
            a.stored.ld as i32,
            (&raw const beta).cast(),
            c as *mut c_void,
            c_type,
            ldc as i32,
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| {
        Error::device(
            gpu.short_name(),
            format!("cuBLAS, [{m}, {k}] · [{k}, {n}]: {:?}", e.0),
            "Restart the kernel",
        )
    })
}
