// Several sequences (rows) side by side: their prompts' keys and values, and the likeliest token of each.
#include "../common.cuh"
#include "../decode/state.cuh"

// A row that begins with a prompt of a packed pass.
struct RowFill {
    int row;
    int first;    // where the prompt begins among the pass' tokens
    int len;      // its tokens
};
MIRRORED(RowFill, 12, AT(row, 0) AT(first, 4) AT(len, 8))

template <class T> struct FillRows {
    const T *k;              // [tokens, kv_heads · dim]
    const T *qkv;            // [tokens, (heads + 2 · kv_heads) · dim]
    T *keys, *values;        // [rows, capacity, kv_heads, dim]
    const RowFill *fills;    // one for each y of the grid
    DecodeHeads heads;
};
MIRRORED(FillRows<float>, 64, AT(k, 0) AT(qkv, 8) AT(keys, 16) AT(values, 24) AT(fills, 32) AT(heads, 40))

// One block a token and row.
template <class T> __device__ void fill_rows(const FillRows<T> &args) {
    const DecodeHeads &h = args.heads;
    const RowFill fill = args.fills[blockIdx.y];
    const int token = blockIdx.x, width = h.kv_heads * h.dim;
    if (token >= fill.len || token + h.capacity < fill.len) return;
    const size_t from = (size_t)fill.first + token, to = ((size_t)fill.row * h.capacity + token % h.capacity) * width;
    const T *k = args.k + from * width;
    const T *v = args.qkv + from * (h.heads + 2 * h.kv_heads) * h.dim + (h.heads + h.kv_heads) * h.dim;
    for (int i = threadIdx.x; i < width; i += blockDim.x) args.keys[to + i] = k[i], args.values[to + i] = v[i];
}

struct RowCopy {
    int from, to;
};
MIRRORED(RowCopy, 8, AT(from, 0) AT(to, 4))

template <class T> struct CopyRows {
    const T *from;            // [any number, width]
    T *to;                    // [any number, width]
    const RowCopy *copies;    // one for each block
    int width;
};
MIRRORED(CopyRows<float>, 32, AT(from, 0) AT(to, 8) AT(copies, 16) AT(width, 24))

template <class T> __device__ void copy_rows(const CopyRows<T> &args) {
    const RowCopy copy = args.copies[blockIdx.x];
    const T *from = args.from + (size_t)copy.from * args.width;
    T *to = args.to + (size_t)copy.to * args.width;
    for (int i = threadIdx.x; i < args.width; i += blockDim.x) to[i] = from[i];
}

const int BEST_THREADS = 1024, BEST_TOKENS = 8192;    // of a block

struct BestOfRows {
    const float *logits;    // [rows, vocab]
    float *best;            // [rows, blocks]
    int *best_row;          // [rows, blocks]
    int vocab;
};
MIRRORED(BestOfRows, 32, AT(logits, 0) AT(best, 8) AT(best_row, 16) AT(vocab, 24))

// The best of each block's tokens in each row.
extern "C" __global__ void best_of_rows(const __grid_constant__ BestOfRows args) {
    __shared__ float tops[32];
    __shared__ int tokens[32];
    const float *logits = args.logits + (size_t)blockIdx.y * args.vocab;
    float top = -INFINITY;
    int at = 0x7fffffff;
    for (int i = threadIdx.x; i < BEST_TOKENS; i += BEST_THREADS) {
        const int token = blockIdx.x * BEST_TOKENS + i;
        if (token >= args.vocab) break;
        const float v = logits[token], logit = v == v ? v : -INFINITY;
        if (logit > top || (logit == top && token < at)) top = logit, at = token;
    }
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) {
        const float other = __shfl_xor_sync(0xffffffffu, top, offset);
        const int its = __shfl_xor_sync(0xffffffffu, at, offset);
        if (other > top || (other == top && its < at)) top = other, at = its;
    }
    if (lane == 0) tops[warp] = top, tokens[warp] = at;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < 32; w++)
        if (tops[w] > top || (tops[w] == top && tokens[w] < at)) top = tops[w], at = tokens[w];
    args.best[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = top;
    args.best_row[(size_t)blockIdx.y * gridDim.x + blockIdx.x] = at;
}

struct PickRows {
    const float *best;      // [rows, blocks]
    const int *best_row;    // [rows, blocks]
    int *written;           // [rows, room], as many of a row as its state's limit says
    DecodeState *state;     // [rows]
    int blocks, room;
};
MIRRORED(PickRows, 40, AT(best, 0) AT(best_row, 8) AT(written, 16) AT(state, 24) AT(blocks, 32) AT(room, 36))

// The likeliest token of each row is written where one is wanted, and becomes the next to be read. One
// block of 32 warps a row.
extern "C" __global__ void pick_rows(const __grid_constant__ PickRows args) {
    const size_t row = blockIdx.x;
    const int token = best_of_blocks(args.best + row * args.blocks, args.best_row + row * args.blocks, args.blocks);
    if (threadIdx.x == 0) take_if_wanted(token, args.written + row * args.room, args.state + row);
}

FOR_BOTH_TYPES(fill_rows, FillRows)
FOR_BOTH_TYPES(copy_rows, CopyRows)
