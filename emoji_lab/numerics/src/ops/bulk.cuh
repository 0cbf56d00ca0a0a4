// Copies of whole pieces of memory by Hopper's copy engine, and the barriers in shared memory that tell when they have
// come (PTX ISA, "cp.async.bulk" and "mbarrier"). From compute capability 9.0 on; below it nothing calls them.
//
// Addresses and lengths are multiples of 16 bytes.
#pragma once
#include "common.cuh"

// A barrier that a phase's `count` arrivals and all bytes they expect complete. By one thread, before a
// __syncthreads and `barriers_are_made`.
__device__ __forceinline__ void make_barrier(uint64_t *barrier, int count) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(in_shared(barrier)), "r"(count) : "memory");
#endif
}
// By the thread that made them: the copy engine sees them, too.
__device__ __forceinline__ void barriers_are_made() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
__device__ __forceinline__ void arrive(uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(in_shared(barrier)) : "memory");
#endif
}
// And has the phase wait for so many bytes.
__device__ __forceinline__ void arrive_expecting(uint64_t *barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_shared(barrier)), "r"(bytes) : "memory");
#endif
}
// Once what this thread copies (mma.cuh) has come.
__device__ __forceinline__ void arrive_after_copies(uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(in_shared(barrier)) : "memory");
#endif
}
// Waits until the phase of this parity is over: that of a barrier's first phase is 0.
__device__ __forceinline__ void wait_for(uint64_t *barrier, int parity) {
#if __CUDA_ARCH__ >= 900
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@!over bra again;\n"
                 "}" ::"r"(in_shared(barrier)), "r"(parity)
                 : "memory");
#endif
}

// Into shared memory; the bytes count for the barrier's phase.
__device__ __forceinline__ void bulk_load(void *to, const void *from, int bytes, uint64_t *barrier) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(in_shared(to)),
                 "l"(from), "r"(bytes), "r"(in_shared(barrier))
                 : "memory");
#endif
}
// Out of shared memory. Who has written there calls `written_for_bulk` before others are told.
__device__ __forceinline__ void bulk_store(void *to, const void *from, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(in_shared(from)), "r"(bytes)
                 : "memory");
#endif
}
__device__ __forceinline__ void written_for_bulk() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Until what this thread stores has been read from shared memory.
__device__ __forceinline__ void wait_for_bulk_reads() {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;" ::: "memory");
#endif
}
