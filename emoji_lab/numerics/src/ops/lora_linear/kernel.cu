// A group of linear layers that read one activation is one matrix product: the base weights lie
// one below the other, and the adapters' B beside them, times their scale,
//     y = [x | u] · [W | scale · B]ᵀ,    [dx | du] = dy · [W | scale · B].
// `unpack_weights` puts that matrix together, `adapter_gradients` makes dA and dB.
#include "../adapters.cuh"

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

const int UNPACK_UNITS = 4;    // of a thread, on their way at the same time

// Eight values of a row, from column `j` of B on, of which the row has `rank`; zeros outside.
template <class T> __device__ __forceinline__ void tail_of_row(const Unpack<T> &l, int row, int j, T (&values)[8]) {
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const bool there = l.b != nullptr && j + n >= 0 && j + n < l.rank;
        values[n] = from_f32<T>(there ? l.b[(size_t)row * l.rank + j + n] * l.scale : 0.0f);
    }
}

template <class T> __device__ __forceinline__ void put_eight(T *to, const T (&values)[8]) {
#pragma unroll
    for (int n = 0; n < sizeof(values) / 16; n++) ((uint4 *)to)[n] = ((const uint4 *)values)[n];
}

// Grid [blocks, layers]. A unit is eight values of W or of what is beside it; a block has `UNPACK_UNITS` times as many as
// threads, and there are blocks for all of them.
template <class T> __device__ void unpack_weights(const UnpackWeights<T> &args) {
    // In shared memory sixteen levels are in sixteen banks; constant memory serves one a time.
    __shared__ float levels[16];
    const Unpack<T> l = args.layers[blockIdx.y];
    const uint32_t per_row = l.width / 8, tail = (l.ld - l.width) / 8;
    const uint32_t units = l.packed == nullptr ? 0 : l.rows * per_row, all = units + l.rows * tail;
    const uint32_t first = blockIdx.x * blockDim.x * UNPACK_UNITS;
    if (first >= all) return;
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    uint32_t codes[UNPACK_UNITS];
    float absmax[UNPACK_UNITS];
#pragma unroll
    for (int k = 0; k < UNPACK_UNITS; k++) {
        const uint32_t i = first + k * blockDim.x + threadIdx.x;
        if (i >= units) continue;
        codes[k] = ((const uint32_t *)l.packed)[i];
        absmax[k] = l.absmax[i / (uint32_t)(l.block_size / 8)];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < UNPACK_UNITS; k++) {
        const uint32_t i = first + k * blockDim.x + threadIdx.x;
        __align__(16) T values[8];
        if (i < units) {
#pragma unroll
            for (int n = 0; n < 8; n++) {
                // The first value of a byte is in its high half.
                const uint32_t code = codes[k] >> (8 * (n / 2) + 4 * (1 - n % 2)) & 15;
                values[n] = from_f32<T>(levels[code] * absmax[k]);
            }
            put_eight(l.out + (size_t)(i / per_row) * l.ld + i % per_row * 8, values);
        } else if (i < all) {
            const uint32_t row = (i - units) / tail, column = l.width + (i - units) % tail * 8;
            tail_of_row(l, row, (int)column - l.b_at, values);
            put_eight(l.out + (size_t)row * l.ld + column, values);
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

const int TILE = 64, DEPTH = 32;

// Whose columns tile number `tile` of all is: which adapter's, of its A or of its B; `tile` then counts from the first of
// these. A lane looks at an adapter each, 32 at most, so that nothing is waited for twice.
template <class T>
__device__ __forceinline__ AdapterGradient<T> adapter_of(const AdapterGradients<T> &args, int &tile, bool &of_b) {
    const int lane = (threadIdx.y * blockDim.x + threadIdx.x) & 31;
    int for_a = 0, for_b = 0;
    if (lane < args.count) {
        for_a = (args.adapters[lane].ins + TILE - 1) / TILE;
        for_b = (args.adapters[lane].outs + TILE - 1) / TILE;
    }
    // Tiles of all adapters up to this one.
    int up_to = for_a + for_b;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const int below = __shfl_up_sync(0xffffffffu, up_to, offset);
        if (lane >= offset) up_to += below;
    }
    const int which = __ffs(__ballot_sync(0xffffffffu, tile < up_to)) - 1;
    tile -= __shfl_sync(0xffffffffu, up_to - for_a - for_b, which);
    for_a = __shfl_sync(0xffffffffu, for_a, which);
    of_b = tile >= for_a;
    if (of_b) tile -= for_a;
    return args.adapters[which];
}

// In f32; bf16 has tensor cores for it (gradients.cu).
// da = duᵀ dropout(x), db = scale · dyᵀ u, summed over the tokens in order. A block makes 64 columns
// of one of them (64 of A's inputs, or of B's outputs) for 4 · Q of the rank, as many as rows of blocks go.
template <class T, int Q> __device__ void adapter_gradients(const AdapterGradients<T> &args) {
    __shared__ float left[DEPTH][4 * Q + 1], right[DEPTH][TILE];
    int tile = blockIdx.x;
    bool of_b;
    const AdapterGradient<T> g = adapter_of(args, tile, of_b);
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
    int tile = blockIdx.x;
    bool of_b;
    const AdapterGradient<T> g = adapter_of(args, tile, of_b);
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
FOR_F32_OF((256), adapter_gradients_r16, AdapterGradients)
FOR_F32_OF((256), adapter_gradients_tiled, AdapterGradients)
FOR_F32_OF((256), adapter_gradients_r64, AdapterGradients)
