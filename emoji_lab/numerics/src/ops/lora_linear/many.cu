// For many tokens: u and what flows back through the adapters in launches of their own, sixteen tokens a block, so
// that A is read once for all of them. For few, the kernels in front and behind do it (`adapters_down` and
// `adapters_back` of common.cuh), which is fewer launches.
#include "../adapters.cuh"

const int TOKENS = 16, RANKS = 16, SPAN = 512, BACK_COLUMNS = 128, BACK_RANKS = 64;

template <class T> struct AdaptersDown {
    T *y;                // [tokens, ld]: rows of `width` values, u after each
    const Step *step;    // null without dropout
    Adapters adapters;
    int tokens, ld, width;
};
MIRRORED(AdaptersDown<float>, 88, AT(y, 0) AT(step, 8) AT(adapters, 16) AT(tokens, 72) AT(ld, 76) AT(width, 80))

// For f32; bf16 has another of the same name (tensor.cu). Grid [tokens / 16, adapters · padded / 16], 128 threads. A lane has two tokens and four of the rank; the four warps
// share the row, and their parts are added in order.
template <class T> __device__ void adapters_down_tiled(const AdaptersDown<T> &args) {
    __shared__ float x[TOKENS][SPAN + 4];
    __shared__ float parts[3][TOKENS][RANKS];
    const Adapters &l = args.adapters;
    const int of_one = (l.padded + RANKS - 1) / RANKS, which = blockIdx.y / of_one, j0 = blockIdx.y % of_one * RANKS;
    const int first = blockIdx.x * TOKENS, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, width = args.width;
    const int t0 = lane / 4 * 2, c0 = lane % 4 * 4;
    const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
    let_next_begin();
    wait_for_previous();
    float sums[2][4] = {};
    const float *rows[4];
#pragma unroll
    for (int n = 0; n < 4; n++) rows[n] = a + (size_t)(j0 + c0 + n < l.rank ? j0 + c0 + n : l.rank - 1) * width;
    for (int k0 = 0; a != nullptr && k0 < width; k0 += SPAN) {
        const int span = width - k0 < SPAN ? width - k0 : SPAN, eights = span / 8;
        __syncthreads();
        for (int i = threadIdx.x; i < TOKENS * eights; i += blockDim.x) {
            const int t = i / eights, c = i % eights * 8;
            float v[8] = {};
            if (first + t < args.tokens) {
                load_eight(v, args.y + (size_t)(first + t) * args.ld + k0 + c);
                if (l.dropout.threshold != 0) {
                    const uint64_t block = ((uint64_t)(first + t) * width + k0 + c) / 8;
                    const int linear = which == 0 ? l.linear[0] : which == 1 ? l.linear[1] : l.linear[2];
                    const uint32_t mask =
                        keep_mask(args.step->seed, dropout_stream(args.step, linear), block, l.dropout.threshold);
#pragma unroll
                    for (int n = 0; n < 8; n++) v[n] = mask >> n & 1 ? v[n] : 0.0f;
                }
            }
            *(float4 *)&x[t][c] = make_float4(v[0], v[1], v[2], v[3]);
            *(float4 *)&x[t][c + 4] = make_float4(v[4], v[5], v[6], v[7]);
        }
        __syncthreads();
        for (int from = warp * 32; from < span; from += 128) {
            const int end = from + 32 < span ? from + 32 : span;
#pragma unroll 4
            for (int k = from; k < end; k += 4) {
                const float4 one = *(const float4 *)&x[t0][k], two = *(const float4 *)&x[t0 + 1][k];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const float4 w = __ldg((const float4 *)(rows[n] + k0 + k));
                    sums[0][n] += dot4(one, w), sums[1][n] += dot4(two, w);
                }
            }
        }
    }
    if (warp > 0)
#pragma unroll
        for (int n = 0; n < 4; n++) parts[warp - 1][t0][c0 + n] = sums[0][n], parts[warp - 1][t0 + 1][c0 + n] = sums[1][n];
    __syncthreads();
    if (warp > 0) return;
#pragma unroll
    for (int m = 0; m < 2; m++) {
        if (first + t0 + m >= args.tokens) continue;
        T *u = args.y + (size_t)(first + t0 + m) * args.ld + width + which * l.padded + j0 + c0;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if (j0 + c0 + n >= l.padded) continue;
            float sum = sums[m][n];
            for (int p = 0; p < 3; p++) sum += parts[p][t0 + m][c0 + n];
            if (l.dropout.threshold != 0) sum *= l.dropout.keep_scale;
            u[n] = from_f32<T>(a != nullptr && j0 + c0 + n < l.rank ? sum : 0.0f);
        }
    }
}

struct AdaptersBack {
    float *dx;           // [tokens, ld]: the gradient of rows of `width` values, that of u after each
    const Step *step;    // null without dropout
    Adapters adapters;
    int tokens, ld, width;
};
MIRRORED(AdaptersBack, 88, AT(dx, 0) AT(step, 8) AT(adapters, 16) AT(tokens, 72) AT(ld, 76) AT(width, 80))

#include "tensor.cu"

FOR_BOTH_TYPES(adapters_down_tiled, AdaptersDown)

// Grid [tokens / 16, width / 128], 128 threads: a thread adds to one column of sixteen rows.
extern "C" __global__ void adapters_back_tiled(const __grid_constant__ AdaptersBack args) {
    __shared__ float du[BACK_RANKS][TOKENS + 4];
    const Adapters &l = args.adapters;
    const int first = blockIdx.x * TOKENS, width = args.width, lane = threadIdx.x & 31;
    const int column = blockIdx.y * BACK_COLUMNS + threadIdx.x;
    let_next_begin();
    wait_for_previous();
    float total[TOKENS] = {};
    for (int which = 0; which < l.count; which++) {
        const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
        if (a == nullptr) continue;
        float sums[TOKENS] = {};
        for (int j0 = 0; j0 < l.rank; j0 += BACK_RANKS) {
            const int ranks = l.rank - j0 < BACK_RANKS ? l.rank - j0 : BACK_RANKS;
            __syncthreads();
            for (int i = threadIdx.x; i < TOKENS * ranks; i += blockDim.x) {
                const int t = i / ranks, j = i % ranks;
                const size_t at = (size_t)(first + t) * args.ld + width + which * l.padded + j0 + j;
                du[j][t] = first + t < args.tokens ? args.dx[at] : 0.0f;
            }
            __syncthreads();
            if (column < width) {
#pragma unroll 4
                for (int j = 0; j < ranks; j++) {
                    const float w = __ldg(a + (size_t)(j0 + j) * width + column);
#pragma unroll
                    for (int t = 0; t < TOKENS; t += 4) {
                        const float4 d = *(const float4 *)&du[j][t];
                        sums[t] += d.x * w, sums[t + 1] += d.y * w, sums[t + 2] += d.z * w, sums[t + 3] += d.w * w;
                    }
                }
            }
        }
        if (l.dropout.threshold == 0) {
#pragma unroll
            for (int t = 0; t < TOKENS; t++) total[t] += sums[t];
            continue;
        }
        // Eight lanes share eight columns: each makes the masks of two tokens.
        const int linear = which == 0 ? l.linear[0] : which == 1 ? l.linear[1] : l.linear[2];
        const uint64_t stream = dropout_stream(args.step, linear), seed = args.step->seed;
        const uint64_t block = (uint64_t)(first + (lane & 7)) * (width / 8) + column / 8;
        const uint32_t low = keep_mask(seed, stream, block, l.dropout.threshold);
        const uint32_t high = keep_mask(seed, stream, block + (uint64_t)8 * (width / 8), l.dropout.threshold);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const uint32_t mask = __shfl_sync(0xffffffffu, t < 8 ? low : high, (lane & 24) | (t & 7));
            if (mask >> (lane & 7) & 1) total[t] += sums[t] * l.dropout.keep_scale;
        }
    }
    if (column >= width) return;
#pragma unroll
    for (int t = 0; t < TOKENS; t++)
        if (first + t < args.tokens) args.dx[(size_t)(first + t) * args.ld + column] += total[t];
}
