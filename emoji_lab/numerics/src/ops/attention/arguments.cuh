// What attention's kernels take, whether a block has one token (kernel.cu) or sixteen (tiles.cu), and the way back
// through the norm and the rotation, which both end with.
//
// `q` [tokens, heads, dim], `k` [tokens, kv_heads, dim]; `v` are the last kv_heads · dim columns of
// `qkv` [tokens, (heads + 2 · kv_heads) · dim]. Token t belongs to the sequence that begins at
// `start[t]` and ends before `end[t]`.
#pragma once
#include "../adapters.cuh"

struct AttentionSizes {
    int heads, kv_heads, dim;
    int window;    // 0 for none
    float scale;
};
MIRRORED(AttentionSizes, 20, AT(heads, 0) AT(kv_heads, 4) AT(dim, 8) AT(window, 12) AT(scale, 16))

template <class T> struct AttentionForward {
    const T *q, *k, *qkv;
    const int *start;    // [tokens]
    T *y;                // [tokens, ldy], the adapter's u after each row
    float *lse;          // [tokens, heads]: log-sum-exp of the scores
    const Step *step;
    Adapters adapters;
    AttentionSizes sizes;
    int ldy;
};
MIRRORED(AttentionForward<float>, 136,
         AT(q, 0) AT(k, 8) AT(qkv, 16) AT(start, 24) AT(y, 32) AT(lse, 40) AT(step, 48) AT(adapters, 56) AT(sizes, 112)
         AT(ldy, 132))

template <class T> struct AttentionDelta {
    float *d_y;          // [tokens, ldy]: what came through the base weight, and after it the gradient of u
    const T *y;          // [tokens, ldy]
    float *delta;        // [tokens, heads]
    const Step *step;
    Adapters adapters;
    AttentionSizes sizes;
    int ldy;
};
MIRRORED(AttentionDelta<float>, 112,
         AT(d_y, 0) AT(y, 8) AT(delta, 16) AT(step, 24) AT(adapters, 32) AT(sizes, 88) AT(ldy, 108))

template <class T> struct AttentionBackward {
    const float *d_y;                    // [tokens, ldy], as AttentionDelta leaves it
    const T *q, *k, *qkv;
    const float *lse, *delta;            // [tokens, heads]; sixteen tokens a block make `delta` themselves
    const int *start, *end;              // [tokens]
    const float *weight_q, *weight_k;    // [dim]
    const float *rstd;                   // [tokens, heads + kv_heads]
    const float *cos, *sin;              // [positions there are, dim / 2]
    const int *positions;                // [tokens]
    T *d_qkv;                            // as qkv
    // Terms of the gradients of the norms' weights, [tokens, heads · dim] and [tokens, kv_heads · dim]; null
    // where these are not trained.
    float *terms_q, *terms_k;
    const T *y;                          // [tokens, ldy]: read where `delta` is not
    AttentionSizes sizes;
    int ldy;
};
MIRRORED(AttentionBackward<float>, 168,
         AT(d_y, 0) AT(q, 8) AT(k, 16) AT(qkv, 24) AT(lse, 32) AT(delta, 40) AT(start, 48) AT(end, 56) AT(weight_q, 64)
         AT(weight_k, 72) AT(rstd, 80) AT(cos, 88) AT(sin, 96) AT(positions, 104) AT(d_qkv, 112) AT(terms_q, 120)
         AT(terms_k, 128) AT(y, 136) AT(sizes, 144) AT(ldy, 164))

// The gradient `d` [dim] (shared memory) of a rotated, normalised head, taken back to the raw head `x`; what it adds
// to the gradient of the norm's weight into `terms` [dim], unless that is null.
template <class T>
__device__ void norm_rope_backward(float *d, const T *x, const float *w, float rstd, const float *cos, const float *sin,
                                   T *out, float *terms, int dim, int lane) {
    const int half = dim / 2;
    float sum = 0.0f;
#pragma unroll 4
    for (int i = lane; i < half; i += 32) {
        const float a = d[i], b = d[i + half], c = cos[i], s = sin[i];
        const float da = a * c + b * s, db = b * c - a * s;
        const float ga = da * (1.0f + w[i]), gb = db * (1.0f + w[i + half]);
        if (terms != nullptr) {
            terms[i] = da * (to_f32(x[i]) * rstd);
            terms[i + half] = db * (to_f32(x[i + half]) * rstd);
        }
        d[i] = ga, d[i + half] = gb;
        sum += ga * to_f32(x[i]) + gb * to_f32(x[i + half]);
    }
    const float mean = warp_sum(sum) * rstd / dim;
#pragma unroll 4
    for (int i = lane; i < half; i += 32) {
        out[i] = from_f32<T>(rstd * (d[i] - to_f32(x[i]) * rstd * mean));
        out[i + half] = from_f32<T>(rstd * (d[i + half] - to_f32(x[i + half]) * rstd * mean));
    }
}
