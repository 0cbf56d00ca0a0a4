// Queries and keys as attention takes them: each head normalised separately, then rotated.
// One block a token, one warp a head.
#include "../common.cuh"

template <class T> struct QkNormRope {
    const T *qkv;                             // [tokens, (heads + 2 · kv_heads) · dim]
    const float *weight_q, *weight_k;         // [dim]
    const float *cos, *sin;                   // [positions there are, dim / 2]
    const int *positions;                     // [tokens]
    T *q, *k;                                 // [tokens, heads · dim], [tokens, kv_heads · dim]
    float *rstd;                              // [tokens, heads + kv_heads]
    int heads, kv_heads, dim;
    float eps;
};
MIRRORED(QkNormRope<float>, 88,
         AT(qkv, 0) AT(weight_q, 8) AT(weight_k, 16) AT(cos, 24) AT(sin, 32) AT(positions, 40) AT(q, 48) AT(k, 56)
         AT(rstd, 64) AT(heads, 72) AT(kv_heads, 76) AT(dim, 80) AT(eps, 84))

template <class T> __device__ void qk_norm_rope(const QkNormRope<T> &args) {
    extern __shared__ float rows[];
    const int heads = args.heads, kv_heads = args.kv_heads, dim = args.dim;
    const int token = blockIdx.x, head = threadIdx.y, lane = threadIdx.x, half = dim / 2;
    let_next_begin();
    wait_for_previous();
    const T *x = args.qkv + ((size_t)token * (heads + 2 * kv_heads) + head) * dim;
    const float *w = head < heads ? args.weight_q : args.weight_k;
    float *row = rows + head * dim;
    float squares = 0.0f;
#pragma unroll 8
    for (int i = lane; i < dim; i += 32) {
        const float v = to_f32(x[i]);
        row[i] = v;
        squares += v * v;
    }
    const float r = rsqrtf(warp_sum(squares) / dim + args.eps);
    if (lane == 0) args.rstd[(size_t)token * (heads + kv_heads) + head] = r;
    __syncwarp();
    T *y = head < heads ? args.q + ((size_t)token * heads + head) * dim
                        : args.k + ((size_t)token * kv_heads + head - heads) * dim;
    const size_t angle = (size_t)args.positions[token] * half;
#pragma unroll 4
    for (int i = lane; i < half; i += 32) {
        const float a = row[i] * r * (1.0f + w[i]), b = row[i + half] * r * (1.0f + w[i + half]);
        const float c = args.cos[angle + i], s = args.sin[angle + i];
        y[i] = from_f32<T>(a * c - b * s);
        y[i + half] = from_f32<T>(b * c + a * s);
    }
}

FOR_BOTH_TYPES(qk_norm_rope, QkNormRope)
