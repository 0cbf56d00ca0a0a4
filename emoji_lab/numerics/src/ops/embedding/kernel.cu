// Rows of the embedding, and the gradient back into them.
#include "../common.cuh"

template <class T> struct EmbeddingForward {
    const T *table;    // [vocab, width]
    const int *ids;    // [tokens], `apart` numbers from one to the next
    float *x;          // [tokens, width]
    int width;
    float scale;
    int apart;
};
MIRRORED(EmbeddingForward<float>, 40, AT(table, 0) AT(ids, 8) AT(x, 16) AT(width, 24) AT(scale, 28) AT(apart, 32))

template <class T> __device__ void embedding_forward(const EmbeddingForward<T> &args) {
    const int width = args.width;
    const T *row = args.table + (size_t)args.ids[blockIdx.x * args.apart] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        args.x[(size_t)blockIdx.x * width + i] = to_f32(row[i]) * args.scale;
}

// The same from a table in halves, as adamw/kernel.cu keeps a head that is trained.
struct EmbeddingForwardSplit {
    const bf16 *high;      // [vocab, width]
    const int16_t *low;    // [vocab, width]
    const int *ids;        // [tokens], as above
    float *x;              // [tokens, width]
    int width;
    float scale;
    int apart;
};
MIRRORED(EmbeddingForwardSplit, 48,
         AT(high, 0) AT(low, 8) AT(ids, 16) AT(x, 24) AT(width, 32) AT(scale, 36) AT(apart, 40))

extern "C" __global__ void embedding_forward_split(const __grid_constant__ EmbeddingForwardSplit args) {
    const int width = args.width;
    const size_t row = (size_t)args.ids[blockIdx.x * args.apart] * width;
    const uint16_t *bits = (const uint16_t *)args.high;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        args.x[(size_t)blockIdx.x * width + i] = joined(bits[row + i], (uint16_t)args.low[row + i]) * args.scale;
}

FOR_BOTH_TYPES(embedding_forward, EmbeddingForward)

template <class T> struct EmbeddingBackward {
    T *d_table;          // [vocab, width]
    const int *ids;      // [tokens]
    const int *order;    // [tokens]: sorted by id, those of one id in their own order
    const int *runs;     // [tokens]: where an id begins in `order`, how many tokens it has; 0 elsewhere
    const float *dx;     // [tokens, width]
    int width;
    float scale;
};
MIRRORED(EmbeddingBackward<float>, 48,
         AT(d_table, 0) AT(ids, 8) AT(order, 16) AT(runs, 24) AT(dx, 32) AT(width, 40) AT(scale, 44))

// One block a place of `order`. So every row is one block's, and its sum is the same in every run, which
// atomics would not give.
template <class T> __device__ void embedding_backward(const EmbeddingBackward<T> &args) {
    const int count = args.runs[blockIdx.x];
    if (count == 0) return;
    const int *order = args.order + blockIdx.x, width = args.width, id = args.ids[order[0]];
    // Of no row. `by_id` gives such tokens no run, but a graph's trial run reads what lies there: runs of one
    // batch beside ids of another.
    if (id < 0) return;
    T *row = args.d_table + (size_t)id * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 8
        for (int n = 0; n < count; n++) sum += args.dx[(size_t)order[n] * width + i];
        row[i] = from_f32<T>(to_f32(row[i]) + sum * args.scale);
    }
}

FOR_BOTH_TYPES(embedding_backward, EmbeddingBackward)

// Rows that are trained apart from their table, put into it in the table's type. A block per row.
template <class T> struct PutRows {
    const float *rows;    // [ids, width]
    const int *ids;       // [ids]
    T *table;             // [vocab, width]
    int width;
};
MIRRORED(PutRows<float>, 32, AT(rows, 0) AT(ids, 8) AT(table, 16) AT(width, 24))

template <class T> __device__ void put_rows(const PutRows<T> &args) {
    const int width = args.width;
    T *to = args.table + (size_t)args.ids[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        to[i] = from_f32<T>(args.rows[(size_t)blockIdx.x * width + i]);
}

FOR_BOTH_TYPES(put_rows, PutRows)
