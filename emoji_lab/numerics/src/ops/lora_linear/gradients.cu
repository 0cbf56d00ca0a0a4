// The gradients of adapters in bf16 on tensor cores: da = duᵀ dropout(x), db = scale · dyᵀ u, summed over the tokens. The
// gradient of u is f32, and so two values of bf16 (tensor.cu); what else is a factor is bf16 as it is.
#include "../mma.cuh"

const int GRADIENT_WARPS = 8, GRADIENT_TOKENS = 16, GRADIENT_RANKS = 16;

// What a lane has of sixteen tokens: of tokens 2q, 2q + 1 and those eight further, eight columns next to each other and
// two of the rank. Which column of a tile of eight, and which row of sixteen of the rank, is which, is free: column i of
// lane g is column g of tile i.
struct GradientParts {
    uint4 columns[4];
    float2 ranks[4];
};

// Grid [64 columns of one A or B each, rank / 16], blocks of up to eight warps: four where there are few tokens, so that
// blocks find room beside others. A warp takes every fourth or eighth sixteen tokens, and the warps' sums are added in
// order. Nobody waits for another one before that, and the next tokens are on their way meanwhile.
extern "C" __global__ void adapter_gradients_tensor(const __grid_constant__ AdapterGradients<bf16> args) {
    __shared__ __align__(16) float parts[GRADIENT_WARPS][GRADIENT_RANKS][TILE + 4];
    int tile = blockIdx.x;
    bool of_b;
    const AdapterGradient<bf16> g = adapter_of(args, tile, of_b);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, q = lane & 3, own = lane >> 2;
    const int columns = of_b ? g.outs : g.ins, first = tile * TILE, from = blockIdx.y * GRADIENT_RANKS;
    if (from >= g.rank) return;
    const int c = first + 8 * own, j = from + 2 * own, tokens = args.tokens;
    const bf16 *x = (of_b ? g.dy : g.x) + c;
    const int ldx = of_b ? g.ldy : g.ldx;
    const bool whole = c + 8 <= columns && (((uintptr_t)x | (uintptr_t)ldx * 2) & 15) == 0;
    const bool dropout = !of_b && args.dropout.threshold != 0;
    const uint64_t seed = args.step->seed, stream = dropout_stream(args.step, g.linear);

    const auto fetch = [&](GradientParts &p, int t0) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int t = t0 + n / 2 * 8 + 2 * q + n % 2;
            uint32_t words[4] = {};
            p.ranks[n] = make_float2(0.0f, 0.0f);
            if (t < tokens) {
                const bf16 *row = x + (size_t)t * ldx;
                if (whole) {
                    const uint4 v = *(const uint4 *)row;
                    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
                } else {
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (c + i < columns) words[i / 2] |= (uint32_t)__bfloat16_as_ushort(row[i]) << (16 * (i % 2));
                }
                if (of_b) {
                    const bf16 *u = g.u + (size_t)t * g.ldx + j;
                    if (j < g.rank) p.ranks[n].x = to_f32(u[0]);
                    if (j + 1 < g.rank) p.ranks[n].y = to_f32(u[1]);
                } else {
                    const float *du = g.du + (size_t)t * g.ldu + j;
                    if (j < g.rank) p.ranks[n].x = du[0];
                    if (j + 1 < g.rank) p.ranks[n].y = du[1];
                }
            }
            if (dropout) {
                uint32_t keep[4];
                keep_words(seed, stream, ((uint64_t)t * g.ins + c) / 8, args.dropout.threshold, keep);
#pragma unroll
                for (int i = 0; i < 4; i++) words[i] &= keep[i];
            }
            p.columns[n] = make_uint4(words[0], words[1], words[2], words[3]);
        }
    };
    float sums[8][4] = {};
    const auto add = [&](const GradientParts &p) {
        uint32_t high[4], low[4];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            halves(p.ranks[2 * n].x, p.ranks[2 * n + 1].x, high[2 * n], low[2 * n]);
            halves(p.ranks[2 * n].y, p.ranks[2 * n + 1].y, high[2 * n + 1], low[2 * n + 1]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const auto word = [&](int n) {
                return i / 2 == 0 ? p.columns[n].x : i / 2 == 1 ? p.columns[n].y : i / 2 == 2 ? p.columns[n].z : p.columns[n].w;
            };
            const uint32_t pick = i % 2 == 0 ? 0x5410 : 0x7632;
            const uint32_t b0 = __byte_perm(word(0), word(1), pick), b1 = __byte_perm(word(2), word(3), pick);
            mma(sums[i], high, b0, b1);
            if (!of_b) mma(sums[i], low, b0, b1);
        }
    };
    GradientParts now, next;
    int t0 = warp * GRADIENT_TOKENS;
    if (t0 < tokens) fetch(now, t0);
    for (; t0 < tokens; t0 += warps * GRADIENT_TOKENS) {
        const int further = t0 + warps * GRADIENT_TOKENS;
        if (further < tokens) fetch(next, further);
        add(now);
        now = next;
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float *to = &parts[warp][2 * own + e / 2][8 * (2 * q + e % 2)];
        *(float4 *)to = make_float4(sums[0][e], sums[1][e], sums[2][e], sums[3][e]);
        *(float4 *)(to + 4) = make_float4(sums[4][e], sums[5][e], sums[6][e], sums[7][e]);
    }
    __syncthreads();
    const bool adds = !args.step->first_micro;
    const float scale = of_b ? g.scale : dropout ? args.dropout.keep_scale : 1.0f;
    for (int i = threadIdx.x; i < GRADIENT_RANKS * TILE; i += blockDim.x) {
        // Threads next to each other write next to each other.
        const int column = of_b ? i / GRADIENT_RANKS : i % TILE, r = of_b ? i % GRADIENT_RANKS : i / TILE;
        if (first + column >= columns || from + r >= g.rank) continue;
        float sum = 0.0f;
        for (int w = 0; w < warps; w++) sum += parts[w][r][column];
        float *to = of_b ? g.db + (size_t)(first + column) * g.rank + from + r : g.da + (size_t)(from + r) * g.ins + first + column;
        *to = adds ? __fmaf_rn(sum, scale, *to) : sum * scale;
    }
}
