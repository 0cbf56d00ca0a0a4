// Rows of the embedding, and the gradient back into them.
#include "../common.cuh"

template <class T>
__device__ void embedding_forward(const T *table, const int *ids, float *x, int width, float scale) {
    const T *row = table + (size_t)ids[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) x[(size_t)blockIdx.x * width + i] = to_f32(row[i]) * scale;
}

// The same from a table in halves, as adamw/kernel.cu keeps a head that is trained.
extern "C" __global__ void embedding_forward_split(const bf16 *high, const int16_t *low, const int *ids, float *x,
                                                   int width, float scale) {
    const size_t row = (size_t)ids[blockIdx.x] * width;
    const uint16_t *bits = (const uint16_t *)high;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        x[(size_t)blockIdx.x * width + i] = joined(bits[row + i], (uint16_t)low[row + i]) * scale;
}

#define PARAMS(T) (const T *table, const int *ids, float *x, int width, float scale)
FOR_BOTH_TYPES(embedding_forward, PARAMS, (table, ids, x, width, scale))
#undef PARAMS

// One block a place of `order` [tokens]: the tokens sorted by id, those of one id in their own order.
// `runs` [tokens] has, where an id begins, how many tokens it has, and 0 elsewhere. So every row is one
// block's, and its sum is the same in every run, which atomics would not give.
template <class T>
__device__ void embedding_backward(T *d_table, const int *ids, const int *order, const int *runs, const float *dx,
                                   int width, float scale) {
    const int count = runs[blockIdx.x];
    if (count == 0) return;
    order += blockIdx.x;
    T *row = d_table + (size_t)ids[order[0]] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
#pragma unroll 8
        for (int n = 0; n < count; n++) sum += dx[(size_t)order[n] * width + i];
        row[i] = from_f32<T>(to_f32(row[i]) + sum * scale);
    }
}

#define PARAMS(T)                                                                                                     \
    (T *d_table, const int *ids, const int *order, const int *runs, const float *dx, int width, float scale)
FOR_BOTH_TYPES(embedding_backward, PARAMS, (d_table, ids, order, runs, dx, width, scale))
#undef PARAMS
