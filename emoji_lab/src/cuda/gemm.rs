//! Matrix products by cuBLAS, on row-major matrices.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublas::{result, sys};
use cudarc::driver::CudaStream;

use super::{Gpu, trouble};
use crate::error::{Error, Result};

/// cuBLAS' workspace: NVIDIA's advice for Hopper. Ours, and one: a graph holds its address.
const WORKSPACE: usize = 32 << 20;

/// A cuBLAS handle on the card's stream.
pub(super) struct Blas {
    handle: sys::cublasHandle_t,
    workspace: u64,
}

impl Blas {
    pub(super) fn new(stream: &Arc<CudaStream>, device: &str) -> Result<Self> {
        let fail = |e: result::CublasError| {
            let (problem, help) = trouble::of_cublas(e.0 as u32, trouble::cublas_version());
            Error::device(device, problem, help)
        };
        // Owned from the beginning: what fails further down gives it back.
        let mut blas = Self { handle: result::create_handle().map_err(fail)?, workspace: 0 };
        // SAFETY: handle and stream are alive; the workspace is freed after both, in `drop`.
        unsafe {
            result::set_stream(blas.handle, stream.cu_stream().cast()).map_err(fail)?;
            blas.workspace = cudarc::driver::result::malloc_sync(WORKSPACE).map_err(|e| {
                Error::device(device, super::gpu::describe(e.0), "Close what else is on the GPU (nvidia-smi)")
            })?;
            sys::cublasSetWorkspace_v2(blas.handle, blas.workspace as *mut c_void, WORKSPACE)
                .result()
                .map_err(fail)?;
        }
        Ok(blas)
    }

    /// What it takes of the card's memory.
    pub(super) fn workspace_bytes(&self) -> usize {
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
pub(super) struct Matrix {
    pub(super) ptr: u64,
    pub(super) ld: usize,
}

/// A row-major matrix.
pub(super) fn matrix(ptr: u64, ld: usize) -> Matrix {
    Matrix { ptr, ld }
}

/// What a product is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Out {
    /// The compute type.
    Compute,
    /// f32, overwriting.
    F32,
    /// The compute type, added to what is there.
    AddCompute,
}

/// Row-major `c [m, n] = a · b`, where `a` is `[m, k]` and `b` is `[k, n]`, or the stored matrix
/// is the transpose of that.
///
/// # Safety
/// The matrices must be as large as `m`, `n`, `k` and their `ld` say, on this card; `a` and `b` in
/// the compute type, `c` in `out`'s.
pub(super) unsafe fn gemm(
    gpu: &Gpu,
    (m, n, k): (usize, usize, usize),
    (a, a_transposed): (Matrix, bool),
    (b, b_transposed): (Matrix, bool),
    c: Matrix,
    out: Out,
) -> Result<()> {
    use sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
    let op = |transposed| if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
    let f32_type = sys::cudaDataType::CUDA_R_32F;
    let compute = if gpu.bf16() { sys::cudaDataType::CUDA_R_16BF } else { f32_type };
    let c_type = if out == Out::F32 { f32_type } else { compute };
    let (alpha, beta) = (1f32, if out == Out::AddCompute { 1f32 } else { 0f32 });
    // cuBLAS is column-major: a row-major matrix is its own transpose there, and cᵀ = bᵀ · aᵀ.
    // SAFETY: the caller's.
    unsafe {
        result::gemm_ex(
            gpu.blas().handle,
            op(b_transposed),
            op(a_transposed),
            n as i32,
            m as i32,
            k as i32,
            (&raw const alpha).cast(),
            b.ptr as *const c_void,
            compute,
            b.ld as i32,
            a.ptr as *const c_void,
            compute,
            a.ld as i32,
            (&raw const beta).cast(),
            c.ptr as *mut c_void,
            c_type,
            c.ld as i32,
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
