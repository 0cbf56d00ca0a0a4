// Decoding one token: matrix times vector, one warp a row.
#include "../common.cuh"
#include "state.cuh"

template <class T> struct Wide;
template <> struct Wide<float> { static const int N = 4; };
template <> struct Wide<bf16> { static const int N = 8; };

// The beginning of a matrix row, P loads a lane: fetched before what it is multiplied with is there.
template <class T, int P> struct RowStart {
    uint4 words[P];
    __device__ __forceinline__ void load(const T *row, int width, int lane) {
#pragma unroll
        for (int p = 0; p < P; p++) {
            const int i = (p * 32 + lane) * Wide<T>::N;
            if (i < width) words[p] = __ldg((const uint4 *)(row + i));
        }
    }
};

// Eight or four values against as many of `x`, in shared memory.
template <class T> __device__ __forceinline__ float word_dot(const uint4 &word, const float *x) {
    const T *v = (const T *)&word;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < Wide<T>::N; n++) sum += to_f32(v[n]) * x[n];
    return sum;
}

// row · x, in every lane. `width` is a multiple of eight; `x` is in shared memory.
template <class T, int P>
__device__ __forceinline__ float row_dot(const RowStart<T, P> &start, const T *row, const float *x, int width, int lane) {
    const int N = Wide<T>::N;
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < P; p++) {
        const int i = (p * 32 + lane) * N;
        if (i < width) sum += word_dot<T>(start.words[p], x + i);
    }
#pragma unroll 4
    for (int i = (P * 32 + lane) * N; i < width; i += 32 * N) sum += word_dot<T>(__ldg((const uint4 *)(row + i)), x + i);
    return warp_sum(sum);
}

// Of both decode_norm_linear and decode_norm_geglu.
template <class T> struct DecodeNormLinear {
    const float *x;                // [width]
    const T *branch;               // [width]; null without one
    const float *branch_weight;    // [width]; null with it
    float *stream;                 // [width]: x, and the branch after its norm
    const float *weight;           // [width]
    const T *matrix;               // [rows, ld]; of geglu [2 · rows, ld], gate above up
    T *y;                          // [rows]
    int ld, rows, width;
    float eps;
};
MIRRORED(DecodeNormLinear<float>, 72,
         AT(x, 0) AT(branch, 8) AT(branch_weight, 16) AT(stream, 24) AT(weight, 32) AT(matrix, 40) AT(y, 48) AT(ld, 56)
         AT(rows, 60) AT(width, 64) AT(eps, 68))

// The stream after a branch has joined it, and its norm, in every block: `x` [width] in shared memory.
// The first block writes the stream.
template <class T> __device__ __forceinline__ void join_and_norm(const DecodeNormLinear<T> &args, float *x) {
    const int width = args.width;
    // One address in 128 bytes is enough.
    for (int i = threadIdx.x * 32; i < width; i += blockDim.x * 32) {
        prefetch(args.weight + i);
        if (args.branch != nullptr) prefetch(args.branch_weight + i);
    }
    let_next_begin();
    wait_for_previous();
    float r = 0.0f;
    if (args.branch != nullptr) {
        float squares = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            const float b = to_f32(args.branch[i]);
            squares += b * b;
        }
        r = rsqrtf(block_sum(squares) / width + args.eps);
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float v = args.x[i];
        if (args.branch != nullptr) v += to_f32(args.branch[i]) * r * (1.0f + args.branch_weight[i]);
        if (blockIdx.x == 0) args.stream[i] = v;
        x[i] = v;
        squares += v * v;
    }
    r = rsqrtf(block_sum(squares) / width + args.eps);
    for (int i = threadIdx.x; i < width; i += blockDim.x) x[i] = to_f32(from_f32<T>(x[i] * r * (1.0f + args.weight[i])));
    __syncthreads();
}

// y = W · norm(x + branch).
template <class T> __device__ void decode_norm_linear(const DecodeNormLinear<T> &args) {
    extern __shared__ float x[];
    const int rows = args.rows, width = args.width;
    const int lane = threadIdx.x & 31, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const T *of = args.matrix + (size_t)min(row, rows - 1) * args.ld;
    RowStart<T, 4> start;
    start.load(of, width, lane);
    join_and_norm(args, x);
    if (row >= rows) return;
    const float sum = row_dot(start, of, x, width, lane);
    if (lane == 0) args.y[row] = from_f32<T>(sum);
}

// y = gelu(W_gate · n) · (W_up · n) with n = norm(x + branch).
template <class T> __device__ void decode_norm_geglu(const DecodeNormLinear<T> &args) {
    extern __shared__ float x[];
    const int rows = args.rows, width = args.width;
    const int lane = threadIdx.x & 31, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const T *gate_row = args.matrix + (size_t)min(row, rows - 1) * args.ld, *up_row = gate_row + (size_t)rows * args.ld;
    RowStart<T, 4> gate_start, up_start;
    gate_start.load(gate_row, width, lane);
    up_start.load(up_row, width, lane);
    join_and_norm(args, x);
    if (row >= rows) return;
    const float g = to_f32(from_f32<T>(row_dot(gate_start, gate_row, x, width, lane)));
    const float up = to_f32(from_f32<T>(row_dot(up_start, up_row, x, width, lane)));
    const float u = 0.7978846f * (g + 0.044715f * g * g * g);
    if (lane == 0) args.y[row] = from_f32<T>(g / (1.0f + expf(-2.0f * u)) * up);
}

template <class T> struct DecodeLinear {
    const T *x;         // [width]
    const T *matrix;    // [rows, ld]
    T *y;               // [rows]
    int ld, rows, width;
};
MIRRORED(DecodeLinear<float>, 40, AT(x, 0) AT(matrix, 8) AT(y, 16) AT(ld, 24) AT(rows, 28) AT(width, 32))

// y = W · x, x of the compute type and read as the matrix is: nothing is shared.
template <class T> __device__ void decode_linear(const DecodeLinear<T> &args) {
    const int rows = args.rows, width = args.width;
    const int N = Wide<T>::N, P = 8;
    const int lane = threadIdx.x & 31, row = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const T *w = args.matrix + (size_t)min(row, rows - 1) * args.ld;
    RowStart<T, P> start;
    start.load(w, width, lane);
    let_next_begin();
    wait_for_previous();
    if (row >= rows) return;
    float sum = 0.0f;
    auto add = [&](const uint4 &a, int i) {
        const uint4 b = *(const uint4 *)(args.x + i);
        const T *u = (const T *)&a, *v = (const T *)&b;
#pragma unroll
        for (int n = 0; n < N; n++) sum += to_f32(u[n]) * to_f32(v[n]);
    };
#pragma unroll
    for (int p = 0; p < P; p++) {
        const int i = (p * 32 + lane) * N;
        if (i < width) add(start.words[p], i);
    }
#pragma unroll 4
    for (int i = (P * 32 + lane) * N; i < width; i += 32 * N) add(__ldg((const uint4 *)(w + i)), i);
    sum = warp_sum(sum);
    if (lane == 0) args.y[row] = from_f32<T>(sum);
}

struct DecodeHeads {
    int heads, kv_heads, dim, capacity;    // capacity: keys the cache holds; a ring for a sliding window
    float scale, eps;
};
MIRRORED(DecodeHeads, 24, AT(heads, 0) AT(kv_heads, 4) AT(dim, 8) AT(capacity, 12) AT(scale, 16) AT(eps, 20))

template <class T> struct DecodeAttention {
    const T *qkv;                        // [rows, (heads + 2 · kv_heads) · dim]
    const float *weight_q, *weight_k;    // [dim]
    const float *cos, *sin;              // [positions there are, dim / 2]
    T *keys, *values;                    // [rows, capacity, kv_heads, dim]
    T *y;                                // [rows, heads · dim]
    const DecodeState *state;            // [rows]
    DecodeHeads heads;
};
MIRRORED(DecodeAttention<float>, 96,
         AT(qkv, 0) AT(weight_q, 8) AT(weight_k, 16) AT(cos, 24) AT(sin, 32) AT(keys, 40) AT(values, 48) AT(y, 56)
         AT(state, 64) AT(heads, 72))

// Normalises and rotates one head [dim], by one warp, into shared memory.
template <class T>
__device__ __forceinline__ void head_norm_rope(const T *x, const float *w, const float *cos, const float *sin, float *out,
                                               int dim, float eps, int lane) {
    const int half = dim / 2;
    float squares = 0.0f;
    for (int i = lane; i < dim; i += 32) {
        const float v = to_f32(x[i]);
        squares += v * v;
    }
    const float r = rsqrtf(warp_sum(squares) / dim + eps);
    for (int i = lane; i < half; i += 32) {
        const float a = to_f32(x[i]) * r * (1.0f + w[i]), b = to_f32(x[i + half]) * r * (1.0f + w[i + half]);
        out[i] = to_f32(from_f32<T>(a * cos[i] - b * sin[i]));
        out[i + half] = to_f32(from_f32<T>(b * cos[i] + a * sin[i]));
    }
}

const int DECODE_WARPS = 8, DECODE_KEYS = 4;    // keys a warp has in flight

// One block a query head of a row (a sequence): norm and rotation of its query and of the new key, which
// goes into the row's cache, then attention over all keys there, each warp over its share of them.
template <class T> __device__ void decode_attention(const DecodeAttention<T> &args) {
    const DecodeHeads &h = args.heads;
    __shared__ __align__(16) float query[256], key[256];
    __shared__ float maxima[DECODE_WARPS], sums[DECODE_WARPS], outs[DECODE_WARPS][256];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, head = blockIdx.x;
    for (int i = threadIdx.x * 32; i < h.dim; i += blockDim.x * 32) prefetch(args.weight_q + i), prefetch(args.weight_k + i);
    let_next_begin();
    wait_for_previous();
    const size_t row = blockIdx.y, cache = row * h.capacity * h.kv_heads * h.dim;
    const T *qkv = args.qkv + row * (h.heads + 2 * h.kv_heads) * h.dim;
    T *keys = args.keys + cache, *values = args.values + cache;
    const int group = h.heads / h.kv_heads, kv = head / group, position = args.state[row].position;
    const size_t angle = (size_t)position * (h.dim / 2);
    const float *cos = args.cos + angle, *sin = args.sin + angle;
    if (warp == 0) head_norm_rope(qkv + head * h.dim, args.weight_q, cos, sin, query, h.dim, h.eps, lane);
    if (warp == 1) head_norm_rope(qkv + (h.heads + kv) * h.dim, args.weight_k, cos, sin, key, h.dim, h.eps, lane);
    __syncthreads();
    const T *value = qkv + (h.heads + h.kv_heads + kv) * h.dim;
    const int slot = position % h.capacity, seen = position < h.capacity ? position + 1 : h.capacity;
    if (head % group == 0)
        for (int i = threadIdx.x; i < h.dim; i += blockDim.x) {
            keys[((size_t)slot * h.kv_heads + kv) * h.dim + i] = from_f32<T>(key[i]);
            values[((size_t)slot * h.kv_heads + kv) * h.dim + i] = value[i];
        }
    // The new key and value are taken from where this block has them, not from the cache: another
    // block may be writing there. What is loaded from there is thrown away.
    const int N = 8;    // dims a lane holds
    float mine[N], new_key[N], new_value[N], out[N], max = -INFINITY, sum = 0.0f;
    load_row(mine, query, h.dim, lane);
    load_row(new_key, key, h.dim, lane);
    load_row(new_value, value, h.dim, lane);
#pragma unroll
    for (int n = 0; n < N; n++) out[n] = 0.0f;
    for (int j = warp * DECODE_KEYS; j < seen; j += DECODE_WARPS * DECODE_KEYS) {
        float scores[DECODE_KEYS], vs[DECODE_KEYS][N], ks[DECODE_KEYS][N], top = max;
#pragma unroll
        for (int g = 0; g < DECODE_KEYS; g++) {
            const int from = j + g < seen ? j + g : seen - 1;
            const size_t at = ((size_t)from * h.kv_heads + kv) * h.dim;
            load_row(ks[g], keys + at, h.dim, lane);
            load_row(vs[g], values + at, h.dim, lane);
        }
#pragma unroll
        for (int g = 0; g < DECODE_KEYS; g++) {
            if (j + g == slot) {
#pragma unroll
                for (int n = 0; n < N; n++) ks[g][n] = new_key[n], vs[g][n] = new_value[n];
            }
            scores[g] = j + g < seen ? warp_sum(dot(mine, ks[g])) * h.scale : -INFINITY;
            top = fmaxf(top, scores[g]);
        }
        const float fade = expf(max - top);
        max = top;
        sum *= fade;
#pragma unroll
        for (int n = 0; n < N; n++) out[n] *= fade;
#pragma unroll
        for (int g = 0; g < DECODE_KEYS; g++) {
            if (j + g >= seen) continue;    // the last key again, perhaps half-written: 0 · NaN is NaN
            const float p = expf(scores[g] - max);
            sum += p;
#pragma unroll
            for (int n = 0; n < N; n++) out[n] += p * vs[g][n];
        }
    }
    if (lane == 0) maxima[warp] = max, sums[warp] = sum;
#pragma unroll
    for (int n = 0; n < N; n++)
        if (lane * N + n < h.dim) outs[warp][lane * N + n] = out[n];
    __syncthreads();
    float top = -INFINITY, total = 0.0f;
    for (int w = 0; w < DECODE_WARPS; w++) top = fmaxf(top, maxima[w]);
    for (int w = 0; w < DECODE_WARPS; w++)
        if (maxima[w] != -INFINITY) total += sums[w] * expf(maxima[w] - top);
    for (int i = threadIdx.x; i < h.dim; i += blockDim.x) {
        float v = 0.0f;
        for (int w = 0; w < DECODE_WARPS; w++)
            if (maxima[w] != -INFINITY) v += outs[w][i] * expf(maxima[w] - top);
        args.y[(row * h.heads + head) * h.dim + i] = from_f32<T>(v / total);
    }
}

template <class T> struct FillCache {
    const T *k;           // [tokens, kv_heads · dim]
    const T *qkv;         // [tokens, (heads + 2 · kv_heads) · dim]
    T *keys, *values;     // [capacity, kv_heads, dim]
    DecodeHeads heads;
    int tokens;
};
MIRRORED(FillCache<float>, 64, AT(k, 0) AT(qkv, 8) AT(keys, 16) AT(values, 24) AT(heads, 32) AT(tokens, 56))

// Keys and values of a prompt into the cache: one block a token, of which the last `capacity` stay.
template <class T> __device__ void fill_cache(const FillCache<T> &args) {
    const DecodeHeads &h = args.heads;
    const int token = blockIdx.x, width = h.kv_heads * h.dim;
    if (token + h.capacity < args.tokens) return;
    const size_t to = (size_t)(token % h.capacity) * width;
    const T *v = args.qkv + (size_t)token * (h.heads + 2 * h.kv_heads) * h.dim + (h.heads + h.kv_heads) * h.dim;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        args.keys[to + i] = args.k[(size_t)token * width + i];
        args.values[to + i] = v[i];
    }
}

template <class T> struct DecodeHead {
    const T *hidden;    // [width]
    const T *matrix;    // [rows, width]
    float *logits;      // [rows]
    float *best;        // [blocks]
    int *best_row;      // [blocks]
    int rows, width;
};
MIRRORED(DecodeHead<float>, 48,
         AT(hidden, 0) AT(matrix, 8) AT(logits, 16) AT(best, 24) AT(best_row, 32) AT(rows, 40) AT(width, 44))

// Logits of all rows of the head, and the best of each block's (the lowest of equals).
template <class T> __device__ void decode_head(const DecodeHead<T> &args) {
    const int rows = args.rows, width = args.width;
    extern __shared__ float x[];
    __shared__ float warp_best[32];
    __shared__ int warp_row[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int first = blockIdx.x * warps + warp, step = gridDim.x * warps;
    // One row ahead of the one that is worked on.
    RowStart<T, 4> next;
    if (first < rows) next.load(args.matrix + (size_t)first * width, width, lane);
    let_next_begin();
    wait_for_previous();
    for (int i = threadIdx.x; i < width; i += blockDim.x) x[i] = to_f32(args.hidden[i]);
    __syncthreads();
    float top = -INFINITY;
    int at = rows;
    for (int row = first; row < rows; row += step) {
        const RowStart<T, 4> start = next;
        if (row + step < rows) next.load(args.matrix + (size_t)(row + step) * width, width, lane);
        const float logit = row_dot(start, args.matrix + (size_t)row * width, x, width, lane);
        if (lane == 0) args.logits[row] = logit;
        if (logit > top) top = logit, at = row;
    }
    if (lane == 0) warp_best[warp] = top, warp_row[warp] = at;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < warps; w++)
        if (warp_best[w] > top || (warp_best[w] == top && warp_row[w] < at)) top = warp_best[w], at = warp_row[w];
    args.best[blockIdx.x] = top;
    args.best_row[blockIdx.x] = at;
}

struct DecodePick {
    const float *best;      // [count]
    const int *best_row;    // [count]
    int *written;           // [the state's limit]
    DecodeState *state;
    int count;
};
MIRRORED(DecodePick, 40, AT(best, 0) AT(best_row, 8) AT(written, 16) AT(state, 24) AT(count, 32))

// The likeliest token is written, and becomes the next to be read. One block of 32 warps.
extern "C" __global__ void decode_pick(const __grid_constant__ DecodePick args) {
    const int row = best_of_blocks(args.best, args.best_row, args.count);
    if (threadIdx.x == 0) take(row, args.written, args.state);
}

FOR_BOTH_TYPES(decode_norm_linear, DecodeNormLinear)
FOR_BOTH_TYPES(decode_norm_geglu, DecodeNormLinear)
FOR_BOTH_TYPES(decode_linear, DecodeLinear)
FOR_BOTH_TYPES(decode_attention, DecodeAttention)
FOR_BOTH_TYPES(fill_cache, FillCache)
FOR_BOTH_TYPES_OF((256, 4), decode_head, DecodeHead)
