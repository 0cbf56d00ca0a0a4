// The adapters around a group's product, for kernels whose block has a token or a few: u = dropout(y) Aᵀ on the way
// there, what flows back through them on the way back.
#pragma once
#include "common.cuh"

// Dropout, as the kernels compute it.
struct DropoutFactors {
    uint32_t threshold;    // p in 1/65,536; 0 for none
    float keep_scale;      // 1 / (1 − p)
};
MIRRORED(DropoutFactors, 8, AT(threshold, 0) AT(keep_scale, 4))

// The adapters that read one activation: q, k and v, or gate and up, or one alone.
// Rank is padded to a multiple of eight, so that rows stay aligned; `a` is null for a linear
// layer of the group that has no adapter.
struct Adapters {
    const float *a[3];    // [rank, width] each
    int linear[3];        // the layer's number, for dropout
    int count;
    int rank;
    int padded;
    DropoutFactors dropout;
};
MIRRORED(Adapters, 56, AT(a, 0) AT(linear, 24) AT(count, 36) AT(rank, 40) AT(padded, 44) AT(dropout, 48))

// Which of up to four pieces of `size` has `i`: a division by a number that only the launch knows takes longer than all
// else that is computed of an index.
__device__ __forceinline__ int piece_of(int i, int size) { return (i >= size) + (i >= 2 * size) + (i >= 3 * size); }

// Fills `masks` [N, count · width / 8] with the bits of `keep_mask` for the rows of N tokens. `step` may be null
// without dropout.
template <int N>
__device__ __forceinline__ void load_masks(const Adapters &l, const Step *step, int token, int width, uint8_t *masks) {
    if (l.dropout.threshold == 0) return;
    const int chunks = width / 8, of_one = l.count * chunks;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (int i = thread; i < N * of_one; i += threads) {
        const int n = N == 1 ? 0 : piece_of(i, of_one), at = i - n * of_one, which = piece_of(at, chunks);
        const uint64_t block = (uint64_t)(token + n) * chunks + at - which * chunks;
        masks[i] = (uint8_t)keep_mask(step->seed, dropout_stream(step, l.linear[which]), block, l.dropout.threshold);
    }
}

// Has the L2 cache fetch the adapters' A: the blocks share the work. For before `wait_for_previous`.
__device__ __forceinline__ void prefetch_adapters(const Adapters &l, int width) {
    const int lines = l.rank * width / 32;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    for (int i = blockIdx.x * threads + thread; i < l.count * lines; i += gridDim.x * threads) {
        const int which = piece_of(i, lines);
        const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
        if (a != nullptr) prefetch(a + (size_t)(i - which * lines) * 32);
    }
}

// What a kernel can do before the one in front of it has ended: the masks of its N tokens, and its A on the way.
template <int N = 1>
__device__ __forceinline__ void begin(const Adapters &adapters, const Step *step, int token, int width, uint8_t *masks) {
    let_next_begin();
    prefetch_adapters(adapters, width);
    load_masks<N>(adapters, step, token, width, masks);
}

// What dropout leaves of four elements from `i` on (without its factor).
__device__ __forceinline__ float4 kept(float4 x, const uint8_t *mask, int i) {
    const int bits = mask[i >> 3] >> (i & 7);
    return make_float4(bits & 1 ? x.x : 0.0f, bits & 2 ? x.y : 0.0f, bits & 4 ? x.z : 0.0f, bits & 8 ? x.w : 0.0f);
}

// Places for dot products in parts: a row is shared by 2 or 4 warps where there are as many for every four
// dot products, 16 warps at most.
const int MAX_PARTIAL = 64;

// u = dropout(row) Aᵀ for every adapter of a group and N rows, into `u` [N, ldu] of which count · padded are written.
// `rows` [N, width] and `masks` are in shared memory and complete. A warp makes four dot products of every row at a time,
// and where there are more warps than that, each takes a part of the rows: loads from A are what takes the
// time, so there are many under way. What comes out does not depend on N.
template <int N = 1, class T>
__device__ __forceinline__ void adapters_down(const Adapters &l, const float *rows, const uint8_t *masks, int width, T *u, int ldu) {
    __shared__ float partial[N][MAX_PARTIAL];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, warps = blockDim.x * blockDim.y / 32;
    const int lane = thread & 31, total = l.count * l.padded, quads = total / 4;
    const int parts = warps >= 4 * quads ? 4 : warps >= 2 * quads ? 2 : 1;
    const int span = (width / parts + 3) / 4 * 4, of_masks = l.count * (width / 8);
    for (int job = thread / 32; job < quads * parts; job += warps) {
        const int part = piece_of(job, quads), d = (job - part * quads) * 4;
        const int which = piece_of(d, l.padded), j = d - which * l.padded;
        const int end = part == parts - 1 ? width : (part + 1) * span;
        const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
        float sums[N][4] = {};
        if (a != nullptr && j < l.rank) {
            const float *of_a[4];
#pragma unroll
            for (int n = 0; n < 4; n++) of_a[n] = a + (size_t)(j + n < l.rank ? j + n : j) * width;
            const uint8_t *mask = masks + which * (width / 8);
            // All loads of these first, eight: with more a block would need a multiprocessor for itself, and what runs
            // beside would be waited for.
            const int STEPS = 2;
            for (int from = part * span + lane * 4; from < end; from += STEPS * 128) {
                float4 w[STEPS][4];
#pragma unroll
                for (int k = 0; k < STEPS; k++)
#pragma unroll
                    for (int n = 0; n < 4; n++)
                        if (from + k * 128 < end) w[k][n] = __ldg((const float4 *)(of_a[n] + from + k * 128));
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    const int i = from + k * 128;
                    if (i >= end) break;
#pragma unroll
                    for (int r = 0; r < N; r++) {
                        float4 x = four(rows + r * width, i);
                        if (l.dropout.threshold != 0) x = kept(x, mask + r * of_masks, i);
#pragma unroll
                        for (int n = 0; n < 4; n++) sums[r][n] += dot4(x, w[k][n]);
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const float sum = warp_sum(sums[r][n]);
                if (lane != n) continue;
                const float value = j + n < l.rank ? sum : 0.0f;
                if (parts == 1) u[r * ldu + d + n] = from_f32<T>(l.dropout.threshold != 0 ? value * l.dropout.keep_scale : value);
                else partial[r][part * total + d + n] = value;
            }
    }
    if (parts == 1) return;
    __syncthreads();
    for (int i = thread; i < N * total; i += warps * 32) {
        const int r = N == 1 ? 0 : piece_of(i, total), d = i - r * total;
        float sum = 0.0f;
        for (int part = 0; part < parts; part++) sum += partial[r][part * total + d];
        u[r * ldu + d] = from_f32<T>(l.dropout.threshold != 0 ? sum * l.dropout.keep_scale : sum);
    }
}

// What flows back through the adapters to every element of N rows: Σ mask · (du A), adapter by
// adapter into `back` [N, count · width]. `du` [N, count · padded], `masks` and `back` are in shared
// memory; `back` is complete after the next __syncthreads.
template <int N = 1>
__device__ __forceinline__ void adapters_back(const Adapters &l, const float *du, const uint8_t *masks, int width, float *back) {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const int fours = width / 4, total = l.count * l.padded, of_masks = l.count * (width / 8);
    for (int job = thread; job < l.count * fours; job += threads) {
        const int which = piece_of(job, fours), i = (job - which * fours) * 4;
        const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2], *d = du + which * l.padded;
        float4 sums[N] = {};
        if (a != nullptr) {
            for (int from = 0; from < l.rank; from += 8) {
                // All loads of these first, as above.
                float4 v[8];
#pragma unroll
                for (int k = 0; k < 8; k++)
                    if (from + k < l.rank) v[k] = __ldg((const float4 *)(a + (size_t)(from + k) * width + i));
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    if (from + k >= l.rank) break;
#pragma unroll
                    for (int r = 0; r < N; r++) {
                        const float f = d[r * total + from + k];
                        sums[r].x += f * v[k].x, sums[r].y += f * v[k].y, sums[r].z += f * v[k].z, sums[r].w += f * v[k].w;
                    }
                }
            }
        }
#pragma unroll
        for (int r = 0; r < N; r++) {
            if (l.dropout.threshold != 0) {
                const float scale = l.dropout.keep_scale;
                sums[r] = kept(sums[r], masks + r * of_masks + which * (width / 8), i);
                sums[r].x *= scale, sums[r].y *= scale, sums[r].z *= scale, sums[r].w *= scale;
            }
            *(float4 *)(back + (r * l.count + which) * width + i) = sums[r];
        }
    }
}

// Elements i to i + 3 of the sum over adapters.
__device__ __forceinline__ float4 back_of(const Adapters &l, const float *back, int width, int i) {
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int which = 0; which < l.count; which++) {
        const float4 b = four(back + which * width, i);
        total.x += b.x, total.y += b.y, total.z += b.z, total.w += b.w;
    }
    return total;
}

