// The squared norm of a head's gradient that is nowhere in memory: G = Lᵀ H + E, where L [tokens, vocab] are the
// gradients of the logits, H [tokens, width] the hidden states, and E the gradient of the rows that were looked up.
//   |Lᵀ H|² = Σ over pairs of tokens (L Lᵀ) · (H Hᵀ), and |G|² = |Lᵀ H|² + Σ over rows looked up 2 (Lᵀ H) · E + E².
// All in bf16's products with sums in f32; what is added across blocks is f64.
#include "../mma.cuh"

const int GRAM_TOKENS = 192, GRAM_BLOCKS = 256, GRAM_COLUMNS = 64, GRAM_STRIDE = GRAM_COLUMNS + 8, GRAM_WARPS = 8;

struct HiddenProducts {
    const bf16 *hidden;    // [tokens, width]
    float *products;       // [tokens, tokens]
    int tokens, width;
};
MIRRORED(HiddenProducts, 24, AT(hidden, 0) AT(products, 8) AT(tokens, 16) AT(width, 20))

// H Hᵀ, a block a row of it.
extern "C" __global__ void hidden_products(const __grid_constant__ HiddenProducts args) {
    extern __shared__ float one[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, width = args.width;
    const bf16 *row = args.hidden + (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) one[i] = to_f32(row[i]);
    __syncthreads();
#pragma unroll 2
    for (int j = warp; j < args.tokens; j += blockDim.x / 32) {
        float sum = 0.0f;
#pragma unroll 3
        for (int i = lane * 8; i < width; i += 256) {
            float other[8];
            load_eight(other, args.hidden + (size_t)j * width + i);
#pragma unroll
            for (int n = 0; n < 8; n++) sum += one[i + n] * other[n];
        }
        sum = warp_sum(sum);
        if (lane == 0) args.products[(size_t)blockIdx.x * args.tokens + j] = sum;
    }
}

struct HeadSquares {
    const bf16 *d_logits;     // [tokens, vocab]
    const float *products;    // [tokens, tokens], of hidden_products
    double *partials;         // [256]
    int tokens, vocab;
};
MIRRORED(HeadSquares, 32, AT(d_logits, 0) AT(products, 8) AT(partials, 16) AT(tokens, 24) AT(vocab, 28))

// A block takes some columns of L: its share of L Lᵀ, 16 × 16 tokens at a time on and above the diagonal, times H Hᵀ.
template <int UNITS> __device__ void squares_of_columns(const HeadSquares &args) {
    extern __shared__ __align__(16) bf16 columns[];    // [2, tiles · 16, GRAM_STRIDE]
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int tiles = (args.tokens + 15) / 16, rows = tiles * 16;
    const int blocks = (args.vocab + GRAM_COLUMNS - 1) / GRAM_COLUMNS, each = (blocks + GRAM_BLOCKS - 1) / GRAM_BLOCKS;
    const int first = blockIdx.x * each, end = first + each < blocks ? first + each : blocks;
    // The pairs of tiles of this warp: the first, the ninth and so on.
    int left[UNITS], right[UNITS], units = 0;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        int pair = warp + u * GRAM_WARPS, i = 0;
        while (i < tiles && pair >= tiles - i) pair -= tiles - i, i++;
        left[u] = i, right[u] = i + pair;
        units += i < tiles;
    }
    const auto load = [&](int block, int half) {
        bf16 *to = columns + half * rows * GRAM_STRIDE;
        for (int i = threadIdx.x; i < rows * (GRAM_COLUMNS / 8); i += blockDim.x) {
            const int t = i / (GRAM_COLUMNS / 8), c = i % (GRAM_COLUMNS / 8) * 8, column = block * GRAM_COLUMNS + c;
            const bool there = t < args.tokens && column < args.vocab;
            copy_16(to + t * GRAM_STRIDE + c, args.d_logits + (there ? (size_t)t * args.vocab + column : 0), there);
        }
        commit_copies();
    };
    float sums[UNITS][2][4] = {};
    if (first < end) load(first, 0);
    for (int block = first; block < end; block++) {
        const int half = (block - first) & 1;
        if (block + 1 < end) {
            load(block + 1, half ^ 1);
            wait_for_copies<1>();
        } else {
            wait_for_copies<0>();
        }
        __syncthreads();
        const bf16 *from = columns + half * rows * GRAM_STRIDE;
#pragma unroll
        for (int k = 0; k < GRAM_COLUMNS; k += 16)
#pragma unroll
            for (int u = 0; u < UNITS; u++) {
                if (u >= units) continue;
                uint32_t a[4], b[4];
                load_matrices(a, from + (left[u] * 16 + (lane & 15)) * GRAM_STRIDE + k + lane / 16 * 8);
                load_matrices(b, from + (right[u] * 16 + lane / 16 * 8 + (lane & 7)) * GRAM_STRIDE + k + lane / 8 % 2 * 8);
                mma(sums[u][0], a, b[0], b[1]);
                mma(sums[u][1], a, b[2], b[3]);
            }
        __syncthreads();
    }
    double total = 0.0;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        if (u >= units) continue;
        float share = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            const int i = left[u] * 16 + lane / 4 + n / 2 % 2 * 8, j = right[u] * 16 + n / 4 * 8 + lane % 4 * 2 + n % 2;
            if (i < args.tokens && j < args.tokens) share += sums[u][n / 4][n % 4] * args.products[(size_t)i * args.tokens + j];
        }
        total += left[u] == right[u] ? (double)share : 2.0 * share;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) args.partials[blockIdx.x] = total;
}

// Grid [256], 256 threads. For up to 128 tokens, 36 pairs of tiles; and for up to 192, 78.
extern "C" __global__ void head_squares_128(const __grid_constant__ HeadSquares args) { squares_of_columns<5>(args); }
extern "C" __global__ void head_squares_192(const __grid_constant__ HeadSquares args) { squares_of_columns<10>(args); }

struct LookedUpRows {
    const bf16 *d_logits;             // [tokens, vocab]
    const bf16 *hidden;               // [tokens, width]
    const int *ids, *order, *runs;    // [tokens], as embedding/kernel.cu has them
    float *rows;                      // [tokens, width]: by place in `order`, where a run begins
    int tokens, vocab, width, padding;
};
MIRRORED(LookedUpRows, 64,
         AT(d_logits, 0) AT(hidden, 8) AT(ids, 16) AT(order, 24) AT(runs, 32) AT(rows, 40) AT(tokens, 48) AT(vocab, 52)
         AT(width, 56) AT(padding, 60))

// The rows of Lᵀ H that were looked up, a block a place of `order`.
extern "C" __global__ void looked_up_rows(const __grid_constant__ LookedUpRows args) {
    __shared__ float of_row[GRAM_TOKENS];
    const int place = blockIdx.x, width = args.width;
    if (args.runs[place] == 0) return;
    const int id = args.ids[args.order[place]];
    for (int t = threadIdx.x; t < args.tokens; t += blockDim.x)
        of_row[t] = id < 0 ? 0.0f : to_f32(args.d_logits[(size_t)t * args.vocab + id]);
    __syncthreads();
    for (int i = threadIdx.x * 2; i < width; i += blockDim.x * 2) {
        float g[2] = {};
#pragma unroll 8
        for (int t = 0; t < args.tokens; t++) {
            const float2 h = __bfloat1622float2(*(const __nv_bfloat162 *)(args.hidden + (size_t)t * width + i));
            g[0] += of_row[t] * h.x, g[1] += of_row[t] * h.y;
        }
        *(float2 *)(args.rows + (size_t)place * width + i) = make_float2(g[0], g[1]);
    }
}

struct LookupSquares {
    const float *rows;          // [tokens, width], of looked_up_rows
    const float *dx;            // [tokens, width]
    const int *order, *runs;    // [tokens]
    double *partials;           // [192]
    int tokens, width;
    float scale;
    int padding;
};
MIRRORED(LookupSquares, 56,
         AT(rows, 0) AT(dx, 8) AT(order, 16) AT(runs, 24) AT(partials, 32) AT(tokens, 40) AT(width, 44) AT(scale, 48)
         AT(padding, 52))

// What a row that was looked up adds, a block a place of `order`.
extern "C" __global__ void lookup_squares(const __grid_constant__ LookupSquares args) {
    const int place = blockIdx.x, count = place < args.tokens ? args.runs[place] : 0, width = args.width;
    const int *order = args.order + place;
    float sum = 0.0f;
    if (count > 0) {
        for (int i = threadIdx.x * 2; i < width; i += blockDim.x * 2) {
            const float2 g = *(const float2 *)(args.rows + (size_t)place * width + i);
            float e[2] = {};
            for (int n = 0; n < count; n++) {
                const float2 x = *(const float2 *)(args.dx + (size_t)order[n] * width + i);
                e[0] += x.x, e[1] += x.y;
            }
            sum += e[0] * args.scale * (2.0f * g.x + e[0] * args.scale) + e[1] * args.scale * (2.0f * g.y + e[1] * args.scale);
        }
    }
    const double total = block_sum((double)sum);
    if (threadIdx.x == 0) args.partials[place] = total;
}
