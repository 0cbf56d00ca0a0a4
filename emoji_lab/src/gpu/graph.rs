//! Work that is captured once and replayed.

use cudarc::driver::{CudaGraph, sys};

use super::Gpu;
use crate::error::Result;

/// The graph of what `enqueue` asks of the GPU, which is not done yet. Kernels must have been used
/// before: they are loaded then, which cannot be captured.
pub(crate) fn capture(gpu: &Gpu, enqueue: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
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
