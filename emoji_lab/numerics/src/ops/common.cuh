// What every kernel uses: conversions, reductions, Philox and the dropout mask.
//
// Values are f32 or bf16 in memory (`T`), and f32 in every computation. All kernels are
// deterministic: every sum of floats in a fixed order, atomics on integers alone.
#pragma once
#include <cuda_bf16.h>
#include <stddef.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

// A struct that the Rust side has as well, `mirrored!` there: its size and every field's offset. Both
// sides are asserted by their compilers, and a test of `cuda/mirror.rs` reads that they say the same. A
// kernel's one argument is such a struct.
#define MIRRORED(Struct, size, fields) MIRRORED_AS(Struct, size, fields, __COUNTER__)
#define MIRRORED_AS(Struct, size, fields, number) MIRRORED_IN(Struct, size, fields, number)
#define MIRRORED_IN(Struct, size, fields, number)             \
    struct Mirrored##number {                                 \
        using Mirrored = Struct;                              \
        static_assert(sizeof(Mirrored) == size, #Struct);     \
        fields                                                \
    };
#define AT(field, offset) static_assert(offsetof(Mirrored, field) == offset, #field);

// Programmatic dependent launch (Hopper): a kernel that was launched to begin early waits here for
// the one in front of it, and lets the one after it begin. Each of both must be called once.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
// Has the L2 cache fetch what `p` points into; constants only, before the wait.
__device__ __forceinline__ void prefetch(const void *p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(bf16 v) { return __bfloat162float(v); }
template <class T> __device__ __forceinline__ T from_f32(float v);
template <> __device__ __forceinline__ float from_f32<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float v) { return __float2bfloat16_rn(v); }

// Two halves of an f32, as adamw keeps a head that is trained in bf16 (ops/adamw/cuda.rs). The high
// one is the bf16 nearest to it (of two equally near, the larger).
__device__ __forceinline__ void split(float x, uint32_t &high, uint32_t &low) {
    const uint32_t bits = __float_as_uint(x);
    high = (bits + 0x8000u) >> 16;
    low = (bits - (high << 16)) & 0xffffu;
}
__device__ __forceinline__ float joined(uint32_t high, uint32_t low) {
    return __uint_as_float((high << 16) + (uint32_t)(int32_t)(int16_t)low);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// An address in shared memory as instructions take it.
__device__ __forceinline__ uint32_t in_shared(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// The sum over each of N equal parts of a one-dimensional block, in every thread of it. Parts are whole warps, blocks 32
// warps at most.
template <int N = 1, class V> __device__ __forceinline__ V block_sum(V v) {
    __shared__ V parts[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x >> 5) / N;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) parts[warp] = v;
    __syncthreads();
    v = lane < warps ? parts[warp / warps * warps + lane] : V(0);
    return warp_sum(v);
}

// AdamW's factors, as ops/adamw/cpu.rs has them.
struct Factors {
    float decay;
    float one_minus_beta1;
    float beta2;
    float one_minus_beta2;
    float eps;
    float step_size;
    float root_of_correction2;
};
MIRRORED(Factors, 28,
         AT(decay, 0) AT(one_minus_beta1, 4) AT(beta2, 8) AT(one_minus_beta2, 12) AT(eps, 16) AT(step_size, 20)
         AT(root_of_correction2, 24))

// What changes from step to step. Graphs are replayed with the same arguments, so it lies in
// device memory.
struct Step {
    uint64_t seed;
    uint64_t pass;
    float loss_factor;      // 1 / number of targets in the optimizer step
    float max_grad_norm;    // 0 or less for no clipping
    Factors factors;
    int first_micro;        // whether this is the first micro-batch of the optimizer step
    // As in `factors`, for the embedding and the head.
    float embedding_decay;
    float embedding_step_size;
    uint64_t last_pass;     // of the optimizer step, on whatever GPU
};
MIRRORED(Step, 72,
         AT(seed, 0) AT(pass, 8) AT(loss_factor, 16) AT(max_grad_norm, 20) AT(factors, 24) AT(first_micro, 52)
         AT(embedding_decay, 56) AT(embedding_step_size, 60) AT(last_pass, 64))

// What the host reads of an optimizer step.
struct StepResult {
    double loss;
    double grad_norm;
    float gradient_scale;    // of clipping; 0 where the step is left out
    int finite;
};
MIRRORED(StepResult, 24, AT(loss, 0) AT(grad_norm, 8) AT(gradient_scale, 16) AT(finite, 20))

// Philox4x32-10, as rng.rs has it.
__device__ __forceinline__ void philox(uint64_t seed, uint64_t stream, uint64_t counter, uint32_t out[4]) {
    uint32_t c0 = (uint32_t)counter, c1 = (uint32_t)(counter >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

// Which of eight consecutive elements, from element 8 · block on, dropout keeps: one bit each
// (ops/lora_linear/dropout.rs).
__device__ __forceinline__ uint32_t keep_mask(uint64_t seed, uint64_t stream, uint64_t block, uint32_t threshold) {
    uint32_t words[4], mask = 0;
    philox(seed, stream, block, words);
#pragma unroll
    for (int i = 0; i < 8; i++) mask |= ((words[i / 2] >> (16 * (i % 2)) & 0xffffu) >= threshold ? 1u : 0u) << i;
    return mask;
}

// The same as four words for two values of bf16 each: all ones where one is kept.
__device__ __forceinline__ void keep_words(uint64_t seed, uint64_t stream, uint64_t block, uint32_t threshold, uint32_t (&words)[4]) {
    philox(seed, stream, block, words);
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = __vcmpgeu2(words[i], threshold * 0x10001u);
}

// The stream of a linear layer's dropout (model/linear.rs, `DropoutKey::dropout`).
__device__ __forceinline__ uint64_t dropout_stream(const Step *step, int linear) {
    return step->pass << 16 | (uint64_t)linear;
}

// Four consecutive values; `i` is a multiple of four, and rows are 16-byte aligned.
__device__ __forceinline__ float4 four(const float *x, int i) { return *(const float4 *)(x + i); }
__device__ __forceinline__ float4 four(const bf16 *x, int i) {
    const uint2 v = *(const uint2 *)(x + i);
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                       __uint_as_float(v.y & 0xffff0000u));
}
// The same written; what comes back is what was, after rounding.
__device__ __forceinline__ float4 put_four(float *x, int i, float4 v) {
    *(float4 *)(x + i) = v;
    return v;
}
__device__ __forceinline__ float4 put_four(bf16 *x, int i, float4 v) {
    const __nv_bfloat162 a = __floats2bfloat162_rn(v.x, v.y), b = __floats2bfloat162_rn(v.z, v.w);
    *(uint2 *)(x + i) = make_uint2(*(const uint32_t *)&a, *(const uint32_t *)&b);
    const float2 c = __bfloat1622float2(a), d = __bfloat1622float2(b);
    return make_float4(c.x, c.y, d.x, d.y);
}

// Eight consecutive values, aligned.
__device__ __forceinline__ void load_eight(float (&v)[8], const float *x) {
    const float4 a = four(x, 0), b = four(x, 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void load_eight(float (&v)[8], const bf16 *x) {
    __align__(16) bf16 values[8];
    *(uint4 *)values = *(const uint4 *)x;
#pragma unroll
    for (int n = 0; n < 8; n++) v[n] = to_f32(values[n]);
}

__device__ __forceinline__ float dot4(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// N consecutive values of a row, by one lane of a warp: zeros past `dim`. Rows are aligned to N
// values, and `dim` is a multiple of N.
template <int N> __device__ __forceinline__ void load_row(float (&r)[N], const float *x, int dim, int lane) {
#pragma unroll
    for (int n = 0; n < N; n++) r[n] = 0.0f;
    if (lane * N >= dim) return;
    x += lane * N;
    if constexpr (N >= 4) {
#pragma unroll
        for (int n = 0; n < N; n += 4) {
            const float4 v = *(const float4 *)(x + n);
            r[n] = v.x, r[n + 1] = v.y, r[n + 2] = v.z, r[n + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int n = 0; n < N; n++) r[n] = x[n];
    }
}
template <int N> __device__ __forceinline__ void load_row(float (&r)[N], const bf16 *x, int dim, int lane) {
    __align__(16) bf16 values[N];
#pragma unroll
    for (int n = 0; n < N; n++) values[n] = from_f32<bf16>(0.0f);
    if (lane * N < dim) {
        x += lane * N;
        if constexpr (N == 8) *(uint4 *)values = *(const uint4 *)x;
        else if constexpr (N == 4) *(uint2 *)values = *(const uint2 *)x;
        else if constexpr (N == 2) *(uint32_t *)values = *(const uint32_t *)x;
        else values[0] = x[0];
    }
#pragma unroll
    for (int n = 0; n < N; n++) r[n] = to_f32(values[n]);
}
template <int N> __device__ __forceinline__ float dot(const float (&a)[N], const float (&b)[N]) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) sum += a[n] * b[n];
    return sum;
}

// Both versions of a kernel, by name: `name_f32` and `name_bf16`. Arguments are read where the launch put
// them, without a copy of their own per thread (`__grid_constant__`).
#define FOR_BOTH_TYPES(name, Args)                                                                              \
    extern "C" __global__ void name##_f32(const __grid_constant__ Args<float> args) { name(args); }             \
    extern "C" __global__ void name##_bf16(const __grid_constant__ Args<bf16> args) { name(args); }

// With launch bounds, as below; for one of the types alone.
#define FOR_F32_OF(bounds, name, Args)                                                                           \
    extern "C" __global__ void __launch_bounds__ bounds name##_f32(const __grid_constant__ Args<float> args) {  \
        name(args);                                                                                             \
    }
#define FOR_BF16_OF(bounds, name, Args)                                                                          \
    extern "C" __global__ void __launch_bounds__ bounds name##_bf16(const __grid_constant__ Args<bf16> args) {  \
        name(args);                                                                                             \
    }

// For bf16 alone, blocks in clusters of so many. From compute capability 9.0 on; below it nothing calls them.
#if __CUDA_ARCH__ >= 900
#define IN_CLUSTERS_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define IN_CLUSTERS_OF(blocks)
#endif
#define FOR_BF16_IN_CLUSTERS_OF(blocks, bounds, name, Args)                                                      \
    extern "C" __global__ void IN_CLUSTERS_OF(blocks) __launch_bounds__ bounds name##_bf16(                     \
        const __grid_constant__ Args<bf16> args) {                                                              \
        name(args);                                                                                             \
    }

// The same with launch bounds: (threads a block has at most), or (those, blocks that are to fit on a
// multiprocessor). The compiler then keeps to the registers there are.
#define FOR_BOTH_TYPES_OF(bounds, name, Args)                                                                    \
    extern "C" __global__ void __launch_bounds__ bounds name##_f32(const __grid_constant__ Args<float> args) {  \
        name(args);                                                                                             \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__ bounds name##_bf16(const __grid_constant__ Args<bf16> args) {  \
        name(args);                                                                                             \
    }
