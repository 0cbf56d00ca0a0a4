// A group of linear layers that read one activation is one matrix product: the base weights lie
// one below the other, and the adapters' B beside them, times their scale,
//     y = [x | u] · [W | scale · B]ᵀ,    [dx | du] = dy · [W | scale · B].
// `unpack_weights` puts that matrix together, `adapter_gradients` makes dA and dB.
#include "../common.cuh"

__constant__ const float LEVELS[16] = {-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
    -0.091050036f, 0.0f, 0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f};

// One linear layer within its group's matrix.
template <class T> struct Unpack {
    const uint8_t *packed;    // NF4; null where the base weight is in its place already
    const float *absmax;      // null with it
    T *out;                   // first row of this layer in the group's matrix
    const float *b;           // [rows, rank], null without an adapter
    int rows, width, ld;      // ld = width + tail
    int block_size;
    int b_at, rank;           // B's first column, of `ld`
    float scale;
    int padding;              // a multiple of eight bytes
};
MIRRORED(Unpack<float>, 64,
         AT(packed, 0) AT(absmax, 8) AT(out, 16) AT(b, 24) AT(rows, 32) AT(width, 36) AT(ld, 40) AT(block_size, 44)
         AT(b_at, 48) AT(rank, 52) AT(scale, 56) AT(padding, 60))

template <class T> struct UnpackWeights {
    const Unpack<T> *layers;
};
MIRRORED(UnpackWeights<float>, 8, AT(layers, 0))

// Grid [blocks, layers]. A thread unpacks eight values of W, or writes one value beside it.
template <class T> __device__ void unpack_weights(const UnpackWeights<T> &args) {
    // In shared memory sixteen levels are in sixteen banks; constant memory serves one a time.
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    __syncthreads();
    const Unpack<T> l = args.layers[blockIdx.y];
    T *out = l.out;
    const int per_row = l.width / 8, tail = l.ld - l.width;
    const int units = l.packed == nullptr ? 0 : l.rows * per_row;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < units + l.rows * tail; i += gridDim.x * blockDim.x) {
        if (i < units) {
            const uint32_t codes = ((const uint32_t *)l.packed)[i];
            const float absmax = l.absmax[(size_t)i * 8 / l.block_size];
            __align__(16) T values[8];
#pragma unroll
            for (int n = 0; n < 8; n++) {
                // The first value of a byte is in its high half.
                const uint32_t code = codes >> (8 * (n / 2) + 4 * (1 - n % 2)) & 15;
                values[n] = from_f32<T>(levels[code] * absmax);
            }
            uint4 *to = (uint4 *)(out + (size_t)(i / per_row) * l.ld + i % per_row * 8);
#pragma unroll
            for (int n = 0; n < sizeof(values) / 16; n++) to[n] = ((const uint4 *)values)[n];
        } else {
            const int row = (i - units) / tail, column = l.width + (i - units) % tail;
            const int j = column - l.b_at;
            const float b = l.b != nullptr && j >= 0 && j < l.rank ? l.b[(size_t)row * l.rank + j] * l.scale : 0.0f;
            out[(size_t)row * l.ld + column] = from_f32<T>(b);
        }
    }
}

FOR_BOTH_TYPES(unpack_weights, UnpackWeights)

// One adapter's gradients.
template <class T> struct AdapterGradient {
    const T *x, *u, *dy;       // activations: [tokens, ldx], u within the rows of x, [tokens, ldy]
    const float *du;           // [tokens, ldu]
    float *da, *db;            // [rank, ins], [outs, rank]
    int ins, outs, rank;
    int ldx, ldy, ldu;
    int linear;                // the layer's number, for dropout
    float scale;
};
MIRRORED(AdapterGradient<float>, 80,
         AT(x, 0) AT(u, 8) AT(dy, 16) AT(du, 24) AT(da, 32) AT(db, 40) AT(ins, 48) AT(outs, 52) AT(rank, 56) AT(ldx, 60)
         AT(ldy, 64) AT(ldu, 68) AT(linear, 72) AT(scale, 76))

template <class T> struct AdapterGradients {
    const AdapterGradient<T> *adapters;    // [count]
    const Step *step;
    int count, tokens;
    DropoutFactors dropout;                // of all of them
};
MIRRORED(AdapterGradients<float>, 32, AT(adapters, 0) AT(step, 8) AT(count, 16) AT(tokens, 20) AT(dropout, 24))

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

const int TILE = 64, DEPTH = 32;

// da = duᵀ dropout(x), db = scale · dyᵀ u, summed over the tokens in order. A block makes 64 columns
// of one of them (64 of A's inputs, or of B's outputs) for 4 · Q of the rank, as many as rows of blocks go.
template <class T, int Q> __device__ void adapter_gradients(const AdapterGradients<T> &args) {
    __shared__ float left[DEPTH][4 * Q + 1], right[DEPTH][TILE];
    int tile = blockIdx.x, which = 0, of_b = 0;
    for (; which < args.count; which++) {
        const AdapterGradient<T> &g = args.adapters[which];
        const int for_a = (g.ins + TILE - 1) / TILE, for_b = (g.outs + TILE - 1) / TILE;
        if (tile < for_a) break;
        tile -= for_a;
        if (tile < for_b) {
            of_b = 1;
            break;
        }
        tile -= for_b;
    }
    const AdapterGradient<T> g = args.adapters[which];
    const int columns = of_b ? g.outs : g.ins, first = tile * TILE;
    const int column = threadIdx.x % TILE, part = threadIdx.x / TILE;    // 256 threads: four parts of the rank
    const int from = blockIdx.y * 4 * Q;
    float sums[Q];
#pragma unroll
    for (int k = 0; k < Q; k++) sums[k] = 0.0f;
    for (int t0 = 0; t0 < args.tokens; t0 += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < DEPTH * 4 * Q; i += blockDim.x) {
            const int t = i / (4 * Q), j = i % (4 * Q);
            float v = 0.0f;
            if (t0 + t < args.tokens && from + j < g.rank)
                v = of_b ? to_f32(g.u[(size_t)(t0 + t) * g.ldx + from + j]) : g.du[(size_t)(t0 + t) * g.ldu + from + j];
            left[t][j] = v;
        }
        const int t = threadIdx.x / 8, c = threadIdx.x % 8 * 8;    // eight values per thread
        uint32_t mask = 0xff;
        float factor = 1.0f;
        if (!of_b && args.dropout.threshold != 0) {
            const uint64_t block = ((uint64_t)(t0 + t) * g.ins + first + c) / 8;
            mask = keep_mask(args.step->seed, dropout_stream(args.step, g.linear), block, args.dropout.threshold);
            factor = args.dropout.keep_scale;
        }
        const T *row = of_b ? g.dy + (size_t)(t0 + t) * g.ldy : g.x + (size_t)(t0 + t) * g.ldx;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const bool there = t0 + t < args.tokens && first + c + n < columns && (mask >> n & 1);
            right[t][c + n] = there ? to_f32(row[first + c + n]) * factor : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < DEPTH; k++) {
            const float r = right[k][column];
#pragma unroll
            for (int q = 0; q < Q; q++) sums[q] += r * left[k][part * Q + q];
        }
    }
    if (first + column >= columns) return;
    const bool add = !args.step->first_micro;
    const float scale = of_b ? g.scale : 1.0f;
#pragma unroll
    for (int q = 0; q < Q; q++) {
        const int j = from + part * Q + q;
        if (j >= g.rank) continue;
        float *to = of_b ? g.db + (size_t)(first + column) * g.rank + j : g.da + (size_t)j * g.ins + first + column;
        // Fused as written, not as the compiler sees fit: the same bits from every version of it.
        *to = add ? __fmaf_rn(sums[q], scale, *to) : sums[q] * scale;
    }
}

// The same for many tokens and sixteen of the rank: four groups of 64 threads share the tokens of a chunk, a
// thread has four columns by four of the rank, and the next chunk is on its way meanwhile. The groups' sums are added
// in order.
template <class T> __device__ void adapter_gradients_tiled(const AdapterGradients<T> &args) {
    __shared__ float left[DEPTH][16 + 4], right[DEPTH][TILE + 4];
    __shared__ float parts[4][16][TILE];
    int tile = blockIdx.x, which = 0, of_b = 0;
    for (; which < args.count; which++) {
        const AdapterGradient<T> &g = args.adapters[which];
        const int for_a = (g.ins + TILE - 1) / TILE, for_b = (g.outs + TILE - 1) / TILE;
        if (tile < for_a) break;
        tile -= for_a;
        if (tile < for_b) {
            of_b = 1;
            break;
        }
        tile -= for_b;
    }
    const AdapterGradient<T> g = args.adapters[which];
    const int columns = of_b ? g.outs : g.ins, first = tile * TILE, from = blockIdx.y * 16, tokens = args.tokens;
    const int group = threadIdx.x / 64, c4 = threadIdx.x % 16 * 4, j4 = threadIdx.x / 16 % 4 * 4;
    const T *rows = of_b ? g.dy : g.x;
    const int ld = of_b ? g.ldy : g.ldx, t_right = threadIdx.x / 8, c_right = threadIdx.x % 8 * 8;
    const bool whole = first + c_right + 8 <= columns && (((uintptr_t)rows | (uintptr_t)(ld * sizeof(T))) & 15) == 0;
    const int t_left = threadIdx.x / 16, j_left = threadIdx.x % 16;    // and sixteen tokens on
    float next_right[8], next_left[2];
    auto fetch = [&](int t0) {
#pragma unroll
        for (int n = 0; n < 8; n++) next_right[n] = 0.0f;
        if (t0 + t_right < tokens) {
            const T *row = rows + (size_t)(t0 + t_right) * ld + first + c_right;
            if (whole) load_eight(next_right, row);
            else
#pragma unroll
                for (int n = 0; n < 8; n++)
                    if (first + c_right + n < columns) next_right[n] = to_f32(row[n]);
            if (!of_b && args.dropout.threshold != 0) {
                const uint64_t block = ((uint64_t)(t0 + t_right) * g.ins + first + c_right) / 8;
                const uint32_t mask =
                    keep_mask(args.step->seed, dropout_stream(args.step, g.linear), block, args.dropout.threshold);
#pragma unroll
                for (int n = 0; n < 8; n++) next_right[n] = mask >> n & 1 ? next_right[n] * args.dropout.keep_scale : 0.0f;
            }
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const int t = t0 + t_left + 16 * n, j = from + j_left;
            next_left[n] = 0.0f;
            if (t < tokens && j < g.rank)
                next_left[n] = of_b ? to_f32(g.u[(size_t)t * g.ldx + j]) : g.du[(size_t)t * g.ldu + j];
        }
    };
    float sums[4][4] = {};
    fetch(0);
    for (int t0 = 0; t0 < tokens; t0 += DEPTH) {
        __syncthreads();
        *(float4 *)&right[t_right][c_right] = make_float4(next_right[0], next_right[1], next_right[2], next_right[3]);
        *(float4 *)&right[t_right][c_right + 4] = make_float4(next_right[4], next_right[5], next_right[6], next_right[7]);
        left[t_left][j_left] = next_left[0], left[t_left + 16][j_left] = next_left[1];
        __syncthreads();
        if (t0 + DEPTH < tokens) fetch(t0 + DEPTH);
#pragma unroll
        for (int k = 0; k < DEPTH / 4; k++) {
            const float4 l = *(const float4 *)&left[group * (DEPTH / 4) + k][j4];
            const float4 r = *(const float4 *)&right[group * (DEPTH / 4) + k][c4];
            const float ls[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
            for (int n = 0; n < 4; n++)
                sums[n][0] += ls[n] * r.x, sums[n][1] += ls[n] * r.y, sums[n][2] += ls[n] * r.z, sums[n][3] += ls[n] * r.w;
        }
    }
#pragma unroll
    for (int n = 0; n < 4; n++)
        *(float4 *)&parts[group][j4 + n][c4] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
    __syncthreads();
    const int column = threadIdx.x % TILE;
    if (first + column >= columns) return;
    const bool add = !args.step->first_micro;
    const float scale = of_b ? g.scale : 1.0f;
    for (int q = threadIdx.x / TILE; q < 16; q += 4) {
        const int j = from + q;
        if (j >= g.rank) continue;
        const float sum = parts[0][q][column] + parts[1][q][column] + parts[2][q][column] + parts[3][q][column];
        float *to = of_b ? g.db + (size_t)(first + column) * g.rank + j : g.da + (size_t)j * g.ins + first + column;
        *to = add ? __fmaf_rn(sum, scale, *to) : sum * scale;
    }
}

// Sixteen of the rank at a time, and 64.
template <class T> __device__ void adapter_gradients_r16(const AdapterGradients<T> &args) { adapter_gradients<T, 4>(args); }
template <class T> __device__ void adapter_gradients_r64(const AdapterGradients<T> &args) { adapter_gradients<T, 16>(args); }
FOR_BOTH_TYPES_OF((256), adapter_gradients_r16, AdapterGradients)
FOR_BOTH_TYPES_OF((256), adapter_gradients_tiled, AdapterGradients)
FOR_BOTH_TYPES(adapter_gradients_r64, AdapterGradients)

// For many tokens: u and what flows back through the adapters in launches of their own, sixteen tokens a block, so
// that A is read once for all of them. For few, the kernels in front and behind do it (`adapters_down` and
// `adapters_back` of common.cuh), which is fewer launches.
const int TOKENS = 16, RANKS = 16, SPAN = 512, BACK_COLUMNS = 128, BACK_RANKS = 64;

template <class T> struct AdaptersDown {
    T *y;                // [tokens, ld]: rows of `width` values, u after each
    const Step *step;    // null without dropout
    Adapters adapters;
    int tokens, ld, width;
};
MIRRORED(AdaptersDown<float>, 88, AT(y, 0) AT(step, 8) AT(adapters, 16) AT(tokens, 72) AT(ld, 76) AT(width, 80))

// Grid [tokens / 16, adapters · padded / 16], 128 threads. A lane has two tokens and four of the rank; the four warps
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

FOR_BOTH_TYPES(adapters_down_tiled, AdaptersDown)

struct AdaptersBack {
    float *dx;           // [tokens, ld]: the gradient of rows of `width` values, that of u after each
    const Step *step;    // null without dropout
    Adapters adapters;
    int tokens, ld, width;
};
MIRRORED(AdaptersBack, 88, AT(dx, 0) AT(step, 8) AT(adapters, 16) AT(tokens, 72) AT(ld, 76) AT(width, 80))

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
