// Queries and keys as attention takes them: each head normalised for itself, then rotated.
// One block a token, one warp a head. `qkv` [tokens, (heads + 2 · kv_heads) · dim].
#include "../common.cuh"

template <class T>
__device__ void qk_norm_rope(const T *qkv, const float *w_q, const float *w_k, const float *cos, const float *sin,
                             const int *positions, T *q, T *k, float *rstd, int heads, int kv_heads, int dim, float eps) {
    extern __shared__ float rows[];
    const int token = blockIdx.x, head = threadIdx.y, lane = threadIdx.x, half = dim / 2;
    let_next_begin();
    wait_for_previous();
    const T *x = qkv + ((size_t)token * (heads + 2 * kv_heads) + head) * dim;
    const float *w = head < heads ? w_q : w_k;
    float *row = rows + head * dim;
    float squares = 0.0f;
    for (int i = lane; i < dim; i += 32) {
        const float v = to_f32(x[i]);
        row[i] = v;
        squares += v * v;
    }
    const float r = rsqrtf(warp_sum(squares) / dim + eps);
    if (lane == 0) rstd[(size_t)token * (heads + kv_heads) + head] = r;
    __syncwarp();
    T *y = head < heads ? q + ((size_t)token * heads + head) * dim : k + ((size_t)token * kv_heads + head - heads) * dim;
    const size_t angle = (size_t)positions[token] * half;
    for (int i = lane; i < half; i += 32) {
        const float a = row[i] * r * (1.0f + w[i]), b = row[i + half] * r * (1.0f + w[i + half]);
        const float c = cos[angle + i], s = sin[angle + i];
        y[i] = from_f32<T>(a * c - b * s);
        y[i + half] = from_f32<T>(b * c + a * s);
    }
}

#define PARAMS(T)                                                                                                     \
    (const T *qkv, const float *w_q, const float *w_k, const float *cos, const float *sin, const int *positions, T *q, \
     T *k, float *rstd, int heads, int kv_heads, int dim, float eps)
FOR_BOTH_TYPES(qk_norm_rope, PARAMS, (qkv, w_q, w_k, cos, sin, positions, q, k, rstd, heads, kv_heads, dim, eps))
#undef PARAMS
