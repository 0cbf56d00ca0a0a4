// As many.cu, in bf16 on tensor cores. What is f32 (A, and the gradient of u) is two values of bf16, the nearest one and
// what is missing from it: products of both are as near to f32's as sums in another order.
#include "../mma.cuh"

// Two numbers as their nearest values of bf16 and what is missing.
__device__ __forceinline__ void halves(float a, float b, uint32_t &high, uint32_t &low) {
    high = pack(a, b);
    low = pack(a - __uint_as_float(high << 16), b - __uint_as_float(high & 0xffff0000u));
}

// Grid [tokens / 16, adapters · padded / 16], 256 or 512 threads. The warps share the row, and their parts are added in
// order. Of 32 columns a lane has eight that lie next to each other, of x as of A: in what order they are added is
// nobody's business.
__device__ void adapters_down_tiled(const AdaptersDown<bf16> &args) {
    __shared__ float parts[16][TOKENS][RANKS];
    const Adapters &l = args.adapters;
    const int of_one = (l.padded + RANKS - 1) / RANKS, which = blockIdx.y / of_one, j0 = blockIdx.y % of_one * RANKS;
    const int first = blockIdx.x * TOKENS, lane = threadIdx.x & 31, warp = threadIdx.x >> 5, width = args.width;
    const int q = lane & 3, g = lane >> 2, warps = blockDim.x >> 5;
    const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
    const int linear = which == 0 ? l.linear[0] : which == 1 ? l.linear[1] : l.linear[2];
    let_next_begin();
    wait_for_previous();
    float sums[2][4] = {};
    if (a != nullptr)
#pragma unroll 2
        for (int k0 = warp * 32; k0 < width; k0 += warps * 32) {
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
                        uint32_t keep[4];
                        keep_words(args.step->seed, dropout_stream(args.step, linear), block, l.dropout.threshold, keep);
#pragma unroll
                        for (int n = 0; n < 4; n++) x[r][n] &= keep[n];
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
    if (t >= TOKENS || first + t >= args.tokens || j0 + j >= l.padded) return;
    float sum = 0.0f;
    for (int p = 0; p < warps; p++) sum += parts[p][t][j];
    if (l.dropout.threshold != 0) sum *= l.dropout.keep_scale;
    bf16 *u = args.y + (size_t)(first + t) * args.ld + width + which * l.padded + j0;
    u[j] = from_f32<bf16>(a != nullptr && j0 + j < l.rank ? sum : 0.0f);
}

// Grid [tokens / 16, width / 128], 128 threads: a warp adds to 32 columns of sixteen rows. Which columns of A make up a
// tile of eight is chosen so that a lane reads four of A that are next to each other, and makes eight that share a mask;
// neighbours then exchange half of these, so that both read and write whole sectors of memory.
extern "C" __global__ void __launch_bounds__(128, 5) adapters_back_tensor(const __grid_constant__ AdaptersBack args) {
    const Adapters &l = args.adapters;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2, width = args.width;
    const int first = blockIdx.x * TOKENS, c0 = (blockIdx.y * 4 + warp) * 32, side = q & 1;
    let_next_begin();
    wait_for_previous();
    if (c0 >= width) return;
    // What is there already, on its way while the sums are made: four columns, and four that are eight further.
    const int own = c0 + q / 2 * 16 + side * 4;
    float4 there[2][2];
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            if (first + g + 8 * r < args.tokens && own + 8 * h < width)
                there[r][h] = four(args.dx + (size_t)(first + g + 8 * r) * args.ld, own + 8 * h);
    float total[2][8] = {};
    for (int which = 0; which < l.count; which++) {
        const float *a = which == 0 ? l.a[0] : which == 1 ? l.a[1] : l.a[2];
        if (a == nullptr) continue;
        float sums[4][4] = {};
        for (int j0 = 0; j0 < l.rank; j0 += 16) {
            uint32_t high[4] = {}, low[4] = {};
            float4 rows[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                // Rows g and g + 8, then eight further of the rank; `rows` in the order of the rank alone.
                const int token = first + g + n % 2 * 8, j = j0 + 2 * q + n / 2 * 8, row = j + n % 2, column = c0 + 4 * g;
                const float *du = args.dx + (size_t)token * args.ld + width + which * l.padded + j;
                if (token < args.tokens && j < l.rank) halves(du[0], j + 1 < l.rank ? du[1] : 0.0f, high[n], low[n]);
                rows[n] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (row < l.rank && column < width) rows[n] = __ldg((const float4 *)(a + (size_t)row * width + column));
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const auto of = [&](int n) { return i == 0 ? rows[n].x : i == 1 ? rows[n].y : i == 2 ? rows[n].z : rows[n].w; };
                uint32_t h[2], r[2];
                halves(of(0), of(1), h[0], r[0]), halves(of(2), of(3), h[1], r[1]);
                mma(sums[i], high, h[0], h[1]);
                mma(sums[i], low, h[0], h[1]);
                mma(sums[i], high, r[0], r[1]);
            }
        }
        const int linear = which == 0 ? l.linear[0] : which == 1 ? l.linear[1] : l.linear[2];
        const float scale = l.dropout.threshold != 0 ? l.dropout.keep_scale : 1.0f;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t mask = 0xff;
            if (l.dropout.threshold != 0) {
                const uint64_t block = ((uint64_t)(first + g + 8 * r) * width + c0 + 8 * q) / 8;
                mask = keep_mask(args.step->seed, dropout_stream(args.step, linear), block, l.dropout.threshold);
            }
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (mask >> e & 1) total[r][e] += sums[e % 4][2 * r + e / 4] * scale;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float of[2][4];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float other = __shfl_xor_sync(0xffffffffu, side == 0 ? total[r][4 + e] : total[r][e], 1);
            of[0][e] = side == 0 ? total[r][e] : other;
            of[1][e] = side == 0 ? other : total[r][4 + e];
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (first + g + 8 * r >= args.tokens || own + 8 * h >= width) continue;
            const float4 v = there[r][h];
            *(float4 *)(args.dx + (size_t)(first + g + 8 * r) * args.ld + own + 8 * h) =
                make_float4(v.x + of[h][0], v.y + of[h][1], v.z + of[h][2], v.w + of[h][3]);
        }
    }
}
