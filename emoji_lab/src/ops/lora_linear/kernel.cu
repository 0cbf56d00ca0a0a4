// A group of linear layers that read one activation is one matrix product: the base weights lie
// one below the other, and the adapters' B beside them, times their scale,
//     y = [x | u] · [W | scale · B]ᵀ,    [dx | du] = dy · [W | scale · B].
// `unpack_weights` puts that matrix together, `adapter_gradients` makes dA and dB.
#include "../common.cuh"

__constant__ const float LEVELS[16] = {-1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
    -0.091050036f, 0.0f, 0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f};

// One linear layer within its group's matrix. The Rust side has the same struct.
struct Unpack {
    const uint8_t *packed;    // NF4; null where the base weight is in its place already
    const float *absmax;
    void *out;                // first row of this layer in the group's matrix
    const float *b;           // [rows, rank], null without an adapter
    int rows, width, ld;      // ld = width + tail
    int block_size;
    int b_at, rank;           // B's first column, of `ld`
    float scale;
};

// Grid [blocks, layers]. A thread unpacks eight values of W, or writes one value beside it.
template <class T> __device__ void unpack_weights(const Unpack *layers) {
    // In shared memory sixteen levels are in sixteen banks; constant memory serves one a time.
    __shared__ float levels[16];
    if (threadIdx.x < 16) levels[threadIdx.x] = LEVELS[threadIdx.x];
    __syncthreads();
    const Unpack l = layers[blockIdx.y];
    T *out = (T *)l.out;
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

extern "C" __global__ void unpack_weights_f32(const Unpack *layers) { unpack_weights<float>(layers); }
extern "C" __global__ void unpack_weights_bf16(const Unpack *layers) { unpack_weights<bf16>(layers); }

// One adapter's gradients. The Rust side has the same struct.
struct AdapterGradient {
    const void *x, *u, *dy;    // activations: [tokens, ldx], u within the rows of x, [tokens, ldy]
    const float *du;           // [tokens, ldu]
    float *da, *db;            // [rank, ins], [outs, rank]
    int ins, outs, rank;
    int ldx, ldy, ldu;
    int linear;
    float scale;
};

const int TILE = 64, DEPTH = 32;

// da = duᵀ dropout(x), db = scale · dyᵀ u, summed over the tokens in order. A block makes 64 columns
// of one of them (64 of A's inputs, or of B's outputs) for the whole rank, up to 4 · Q.
template <class T, int Q>
__device__ void adapter_gradients(const AdapterGradient *adapters, int count, const Step *step, int tokens,
                                  uint32_t threshold, float keep_scale) {
    __shared__ float left[DEPTH][4 * Q + 1], right[DEPTH][TILE];
    int tile = blockIdx.x, which = 0, of_b = 0;
    for (; which < count; which++) {
        const int for_a = (adapters[which].ins + TILE - 1) / TILE, for_b = (adapters[which].outs + TILE - 1) / TILE;
        if (tile < for_a) break;
        tile -= for_a;
        if (tile < for_b) {
            of_b = 1;
            break;
        }
        tile -= for_b;
    }
    const AdapterGradient g = adapters[which];
    const int columns = of_b ? g.outs : g.ins, first = tile * TILE;
    const int column = threadIdx.x % TILE, part = threadIdx.x / TILE;    // 256 threads: four parts of the rank
    float sums[Q];
#pragma unroll
    for (int k = 0; k < Q; k++) sums[k] = 0.0f;
    for (int t0 = 0; t0 < tokens; t0 += DEPTH) {
        __syncthreads();
        for (int i = threadIdx.x; i < DEPTH * 4 * Q; i += blockDim.x) {
            const int t = i / (4 * Q), j = i % (4 * Q);
            float v = 0.0f;
            if (t0 + t < tokens && j < g.rank)
                v = of_b ? to_f32(((const T *)g.u)[(size_t)(t0 + t) * g.ldx + j]) : g.du[(size_t)(t0 + t) * g.ldu + j];
            left[t][j] = v;
        }
        const int t = threadIdx.x / 8, c = threadIdx.x % 8 * 8;    // eight values a thread
        uint32_t mask = 0xff;
        float factor = 1.0f;
        if (!of_b && threshold != 0) {
            const uint64_t block = ((uint64_t)(t0 + t) * g.ins + first + c) / 8;
            mask = keep_mask(step->seed, dropout_stream(step, g.linear), block, threshold);
            factor = keep_scale;
        }
        const T *row = of_b ? (const T *)g.dy + (size_t)(t0 + t) * g.ldy : (const T *)g.x + (size_t)(t0 + t) * g.ldx;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const bool there = t0 + t < tokens && first + c + n < columns && (mask >> n & 1);
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
    const bool add = !step->first_micro;
#pragma unroll
    for (int q = 0; q < Q; q++) {
        const int j = part * Q + q;
        if (j >= g.rank) continue;
        float *to = of_b ? g.db + (size_t)(first + column) * g.rank + j : g.da + (size_t)j * g.ins + first + column;
        const float v = of_b ? sums[q] * g.scale : sums[q];
        *to = add ? *to + v : v;
    }
}

#define PARAMS (const AdapterGradient *adapters, int count, const Step *step, int tokens, uint32_t threshold, float keep_scale)
// Up to rank 16, and up to 64.
extern "C" __global__ void adapter_gradients_f32_r16 PARAMS { adapter_gradients<float, 4>(adapters, count, step, tokens, threshold, keep_scale); }
extern "C" __global__ void adapter_gradients_bf16_r16 PARAMS { adapter_gradients<bf16, 4>(adapters, count, step, tokens, threshold, keep_scale); }
extern "C" __global__ void adapter_gradients_f32_r64 PARAMS { adapter_gradients<float, 16>(adapters, count, step, tokens, threshold, keep_scale); }
extern "C" __global__ void adapter_gradients_bf16_r64 PARAMS { adapter_gradients<bf16, 16>(adapters, count, step, tokens, threshold, keep_scale); }
#undef PARAMS
