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

// One block a token. The first token of an id adds up the rows of all of them, in order: the sum
// is the same in every run, which atomics would not give.
template <class T>
__device__ void embedding_backward(T *d_table, const int *ids, const float *dx, int tokens, int width, float scale) {
    extern __shared__ int all_ids[];
    for (int t = threadIdx.x; t < tokens; t += blockDim.x) all_ids[t] = ids[t];
    __syncthreads();
    const int id = all_ids[blockIdx.x];
    int earlier = 0;
    for (int t = threadIdx.x; t < blockIdx.x; t += blockDim.x) earlier |= all_ids[t] == id;
    if (__syncthreads_or(earlier)) return;
    // The id's tokens, in order, in place of the ids.
    __shared__ int count;
    if (threadIdx.x < 32) {
        int found = 0;
        for (int first = blockIdx.x; first < tokens; first += 32) {
            const int t = first + threadIdx.x;
            const bool same = t < tokens && all_ids[t] == id;
            const unsigned votes = __ballot_sync(0xffffffffu, same);
            // Written behind what has been read: `found` is at most `first`.
            if (same) all_ids[found + __popc(votes & ((1u << threadIdx.x) - 1))] = t;
            found += __popc(votes);
            __syncwarp();
        }
        if (threadIdx.x == 0) count = found;
    }
    __syncthreads();
    T *row = d_table + (size_t)id * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (int n = 0; n < count; n++) sum += dx[(size_t)all_ids[n] * width + i];
        row[i] = from_f32<T>(to_f32(row[i]) + sum * scale);
    }
}

#define PARAMS(T) (T *d_table, const int *ids, const float *dx, int tokens, int width, float scale)
FOR_BOTH_TYPES(embedding_backward, PARAMS, (d_table, ids, dx, tokens, width, scale))
#undef PARAMS
