// As many.cu, in bf16 on tensor cores. What is f32 (A, and the gradient of u) is two values of bf16, the nearest one and
// what is missing from it: products of both are as near to f32's as sums in another order.
#include "../mma.cuh"

// Two numbers as their nearest values of bf16 and what is missing.
__device__ __forceinline__ void halves(float a, float b, uint32_t &high, uint32_t &low) {
    high = pack(a, b);
    low = pack(a - __uint_as_float(high << 16), b - __uint_as_float(high & 0xffff0000u));
}

// Grid [tokens / 16, adapters · padded / 16], 256 threads. The eight warps share the row, and their parts are added in
// order. Of 32 columns a lane has eight that lie next to each other, of x as of A: in what order they are added is
// nobody's business.
__device__ void adapters_down_tiled(const AdaptersDown<bf16> &args) {
    __shared__ float parts[8][TOKENS][RANKS];
    const Adapters &l = args.adapters;
    const int of_one = (l.padded + RANKS - 1) / RANKS, which = blockIdx.y / of_one, j0 = blockIdx.y % of_one * RANKS;
    const int first = blockIdx.x * TOKENS, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, width = args.width;
    const int q = lane & 3, g = lane >> 2;
    const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
    const int linear = which == 0 ? l.linear[0] : which == 1 ? l.linear[1] : l.linear[2];
    let_next_begin();
    wait_for_previous();
    float sums[2][4] = {};
    if (a != nullptr)
#pragma unroll 2
        for (int k0 = warp * 32; k0 < width; k0 += 256) {
            const int k = k0 + 8 * q;
            uint32_t x[2][4] = {}, high[2][4] = {}, low[2][4] = {};
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int token = first + g + 8 * r, j = j0 + g + 8 * r;
                if (k < width && token < args.tokens) {
                    const uint4 v = *(const uint4 *)(args.y + (size_t)token * args.ld + k);
                    x[r][0] = v.x, x[r][1] = v.y, x[r][2] = v.z, x[r][3] = v.w;
                    if (l.dropout.threshold != 0) {
                        const uint64_t block = ((uint64_t)token * width + k) / 8;
                        const uint32_t mask =
                            keep_mask(args.step->seed, dropout_stream(args.step, linear), block, l.dropout.threshold);
#pragma unroll
                        for (int n = 0; n < 4; n++)
                            x[r][n] &= (mask >> (2 * n) & 1 ? 0xffffu : 0u) | (mask >> (2 * n + 1) & 1 ? 0xffff0000u : 0u);
                    }
                }
                if (k < width && j < l.rank) {
                    const float4 one = __ldg((const float4 *)(a + (size_t)j * width + k));
                    const float4 two = __ldg((const float4 *)(a + (size_t)j * width + k + 4));
                    halves(one.x, one.y, high[r][0], low[r][0]), halves(one.z, one.w, high[r][1], low[r][1]);
                    halves(two.x, two.y, high[r][2], low[r][2]), halves(two.z, two.w, high[r][3], low[r][3]);
                }
            }
#pragma unroll
            for (int n = 0; n < 4; n += 2) {
                const uint32_t left[4] = {x[0][n], x[1][n], x[0][n + 1], x[1][n + 1]};
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    mma(sums[r], left, high[r][n], high[r][n + 1]);
                    mma(sums[r], left, low[r][n], low[r][n + 1]);
                }
            }
        }
#pragma unroll
    for (int n = 0; n < 8; n++) parts[warp][g + n / 2 % 2 * 8][n / 4 * 8 + 2 * q + n % 2] = sums[n / 4][n % 4];
    __syncthreads();
    const int t = threadIdx.x / RANKS, j = threadIdx.x % RANKS;
    if (first + t >= args.tokens || j0 + j >= l.padded) return;
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < 8; p++) sum += parts[p][t][j];
    if (l.dropout.threshold != 0) sum *= l.dropout.keep_scale;
    bf16 *u = args.y + (size_t)(first + t) * args.ld + width + which * l.padded + j0;
    u[j] = from_f32<bf16>(a != nullptr && j0 + j < l.rank ? sum : 0.0f);
}

// Grid [tokens / 16, width / 256], 128 threads: a warp adds to 64 columns of sixteen rows. Which columns of A make up a
// tile of eight is chosen so that a lane has four next to each other of what comes out, and the lanes of a row sixteen.
extern "C" __global__ void adapters_back_tensor(const __grid_constant__ AdaptersBack args) {
    const Adapters &l = args.adapters;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2, width = args.width;
    const int first = blockIdx.x * TOKENS, c0 = (blockIdx.y * 4 + warp) * 64;
    let_next_begin();
    wait_for_previous();
    if (c0 >= width) return;
    float total[2][16] = {};
    for (int which = 0; which < l.count; which++) {
        const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
        if (a == nullptr) continue;
        float sums[8][4] = {};
        for (int j0 = 0; j0 < l.rank; j0 += 16) {
            uint32_t high[4] = {}, low[4] = {};
            float rows[4][8] = {};
#pragma unroll
            for (int n = 0; n < 4; n++) {
                // Rows g and g + 8, then eight further of the rank; `rows` in the order of the rank alone.
                const int token = first + g + n % 2 * 8, j = j0 + 2 * q + n / 2 * 8;
                const float *du = args.dx + (size_t)token * args.ld + width + which * l.padded + j;
                if (token < args.tokens && j < l.rank) halves(du[0], j + 1 < l.rank ? du[1] : 0.0f, high[n], low[n]);
                const int row = j0 + 2 * q + n % 2 + n / 2 * 8;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    const int column = c0 + i / 2 * 16 + g / 2 * 4 + i % 2 * 2 + g % 2;
                    rows[n][i] = row < l.rank && column < width ? __ldg(a + (size_t)row * width + column) : 0.0f;
                }
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                uint32_t h[2], r[2];
                halves(rows[0][i], rows[1][i], h[0], r[0]), halves(rows[2][i], rows[3][i], h[1], r[1]);
                mma(sums[i], high, h[0], h[1]);
                mma(sums[i], low, h[0], h[1]);
                mma(sums[i], high, r[0], r[1]);
            }
        }
        // A mask of eight columns is two lanes': each makes half of them.
        const int linear = which == 0 ? l.linear[0] : which == 1 ? l.linear[1] : l.linear[2];
        const float scale = l.dropout.threshold != 0 ? l.dropout.keep_scale : 1.0f;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t own[2] = {0xff, 0xff};
            if (l.dropout.threshold != 0)
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    const int column = c0 + (q % 2 * 2 + n) * 16 + q / 2 * 8;
                    const uint64_t block = ((uint64_t)(first + g + 8 * r) * width + column) / 8;
                    own[n] = keep_mask(args.step->seed, dropout_stream(args.step, linear), block, l.dropout.threshold);
                }
            const uint32_t others[2] = {__shfl_xor_sync(0xffffffffu, own[0], 1), __shfl_xor_sync(0xffffffffu, own[1], 1)};
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const uint32_t mask = (p / 2 == q % 2 ? own[p % 2] : others[p % 2]) >> (q % 2 * 4);
#pragma unroll
                for (int e = 0; e < 4; e++)
                    if (mask >> e & 1) total[r][4 * p + e] += sums[2 * p + e / 2][2 * r + e % 2] * scale;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        if (first + g + 8 * r >= args.tokens) continue;
        float *row = args.dx + (size_t)(first + g + 8 * r) * args.ld;
#pragma unroll
        for (int p = 0; p < 4; p++) {
            const int column = c0 + 16 * p + 4 * q;
            if (column >= width) continue;
            float4 v = *(const float4 *)(row + column);
            v.x += total[r][4 * p], v.y += total[r][4 * p + 1], v.z += total[r][4 * p + 2], v.w += total[r][4 * p + 3];
            *(float4 *)(row + column) = v;
        }
    }
}
