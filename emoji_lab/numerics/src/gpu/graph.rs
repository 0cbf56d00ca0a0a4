//! Work that is captured once and replayed.

use std::cell::Cell;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use cudarc::driver::{CudaGraph, sys};

use super::Gpu;
use crate::error::Result;

/// While one thread captures, cuBLAS may fail in another: products wait for its end. It is a precaution for
/// threads with a GPU each, and not enough for two trainers on one GPU at the same time (`docs/gpu-log.md`).
static CAPTURE: RwLock<()> = RwLock::new(());

thread_local! {
    static CAPTURES: Cell<bool> = const { Cell::new(false) };
}

/// Until it is dropped no other thread captures; nothing where this one does.
pub(super) fn no_capture_elsewhere() -> Option<RwLockReadGuard<'static, ()>> {
    match CAPTURES.get() {
        true => None,
        false => Some(CAPTURE.read().unwrap_or_else(PoisonError::into_inner)),
    }
}

/// The graph of what `enqueue` asks of the GPU, which is not done yet. Kernels must have been used
/// before: they are loaded then, which cannot be captured.
pub fn capture(gpu: &Gpu, enqueue: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    let _alone = CAPTURE.write().unwrap_or_else(PoisonError::into_inner);
    CAPTURES.set(true);
    let _over = Over;
    capture_alone(gpu, enqueue)
}

/// Ends what [`CAPTURES`] says, after a panic too.
struct Over;

impl Drop for Over {
    fn drop(&mut self) {
        CAPTURES.set(false);
    }
}

fn capture_alone(gpu: &Gpu, enqueue: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
    let stream = gpu.stream();
    stream
        .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED)
        .map_err(|e| gpu.error(e.0))?;
    let enqueued = enqueue();
    // Also after an error: the stream must not go on capturing.
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY;
    let graph = stream.end_capture(flags);
    enqueued?;
    match graph.map_err(|e| gpu.error(e.0))? {
        Some(graph) => Ok(graph),
        None => Err(gpu.error(sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)),
    }
}
