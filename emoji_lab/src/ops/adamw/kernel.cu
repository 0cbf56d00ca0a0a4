// AdamW over one flat arena (formula: cpu.rs), with clipping. Moments are f32 or bf16 (`M`).
#include "../common.cuh"

// The elements [first, last) are the head: its values and gradients lie apart, in the compute type
// `T`, so that products read them as they are. Where that is bf16, `low` has the other half of the
// f32 that is trained: value = high · 2¹⁶ + low, as integers. `first` and `last` are multiples of 4.
template <class T, class M = T> struct AdamwStep {
    float *values;              // [len − (last − first)]
    T *head;                    // [last − first]
    int16_t *low;               // [last − first]; null in f32
    const float *gradients;     // [len − (last − first)]
    const T *head_gradients;    // [last − first]
    M *exp_avg, *exp_avg_sq;    // [len]
    const Step *step;
    const StepResult *result;
    size_t len, first, last;
    size_t embedding_len;       // so many from the first on have the embedding's learning rate; a multiple of 4
};
MIRRORED(AdamwStep<float>, 104,
         AT(values, 0) AT(head, 8) AT(low, 16) AT(gradients, 24) AT(head_gradients, 32) AT(exp_avg, 40)
         AT(exp_avg_sq, 48) AT(step, 56) AT(result, 64) AT(len, 72) AT(first, 80) AT(last, 88)
         AT(embedding_len, 96))

__device__ __forceinline__ void load_four(float (&x)[4], const float *from) {
    const float4 v = __ldcs((const float4 *)from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ __forceinline__ void load_four(float (&x)[4], const bf16 *from) {
    const uint2 v = __ldcs((const uint2 *)from);
    x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
    x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void store_four(float *to, const float (&x)[4]) {
    __stcs((float4 *)to, make_float4(x[0], x[1], x[2], x[3]));
}

// Rounded up or down at random, so that what is less than the last bit is not lost on average: β₂
// moves the second moment by a thousandth, bf16's steps are up to 1/128.
__device__ __forceinline__ uint32_t rounded(float x, uint32_t random) { return (__float_as_uint(x) + random) >> 16; }

__device__ __forceinline__ void store_moments(float *m_to, float *v_to, const float (&m)[4], const float (&v)[4],
                                              const Step &, size_t) {
    store_four(m_to, m);
    store_four(v_to, v);
}
__device__ __forceinline__ void store_moments(bf16 *m_to, bf16 *v_to, const float (&m)[4], const float (&v)[4],
                                              const Step &s, size_t i) {
    uint32_t r[4], a[4], b[4];
    philox(s.seed, s.last_pass << 16 | 0xffff, i / 4, r);
#pragma unroll
    for (int n = 0; n < 4; n++) a[n] = rounded(m[n], r[n] & 0xffff), b[n] = rounded(v[n], r[n] >> 16);
    __stcs((uint2 *)m_to, make_uint2(a[0] | a[1] << 16, a[2] | a[3] << 16));
    __stcs((uint2 *)v_to, make_uint2(b[0] | b[1] << 16, b[2] | b[3] << 16));
}

__device__ __forceinline__ void load_head(float (&p)[4], const float *head, const int16_t *) { load_four(p, head); }
__device__ __forceinline__ void load_head(float (&p)[4], const bf16 *head, const int16_t *low) {
    const uint2 h = __ldcs((const uint2 *)head), l = __ldcs((const uint2 *)low);
    p[0] = joined(h.x & 0xffff, l.x & 0xffff), p[1] = joined(h.x >> 16, l.x >> 16);
    p[2] = joined(h.y & 0xffff, l.y & 0xffff), p[3] = joined(h.y >> 16, l.y >> 16);
}
__device__ __forceinline__ void store_head(float *head, int16_t *, const float (&p)[4]) { store_four(head, p); }
__device__ __forceinline__ void store_head(bf16 *head, int16_t *low, const float (&p)[4]) {
    uint32_t h[4], l[4];
#pragma unroll
    for (int n = 0; n < 4; n++) split(p[n], h[n], l[n]);
    __stcs((uint2 *)head, make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16));
    __stcs((uint2 *)low, make_uint2(l[0] | l[1] << 16, l[2] | l[3] << 16));
}

// A step whose gradients are not finite changes nothing.
template <class T, class M> __device__ void adamw(const AdamwStep<T, M> &a) {
    if (!a.result->finite) return;
    const Step s = *a.step;
    const Factors &f = s.factors;
    const float scale = a.result->gradient_scale;
    const size_t stride = (size_t)gridDim.x * blockDim.x * 4;
    for (size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4; i < a.len; i += stride) {
        const bool in_head = i >= a.first && i < a.last, in_embedding = i < a.embedding_len;
        const float decay = in_embedding ? s.embedding_decay : f.decay;
        const float step_size = in_embedding ? s.embedding_step_size : f.step_size;
        const size_t beside = i < a.first ? i : i - (a.last - a.first);
        float p[4], g[4], m[4], v[4];
        load_four(m, a.exp_avg + i);
        load_four(v, a.exp_avg_sq + i);
        if (in_head) {
            load_head(p, a.head + (i - a.first), a.low + (i - a.first));
            load_four(g, a.head_gradients + (i - a.first));
        } else {
            load_four(p, a.values + beside);
            load_four(g, a.gradients + beside);
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            g[n] *= scale;
            m[n] += f.one_minus_beta1 * (g[n] - m[n]);
            v[n] = f.beta2 * v[n] + f.one_minus_beta2 * g[n] * g[n];
            p[n] = p[n] * decay - step_size * m[n] / (sqrtf(v[n]) / f.root_of_correction2 + f.eps);
        }
        store_moments(a.exp_avg + i, a.exp_avg_sq + i, m, v, s, i);
        if (in_head) store_head(a.head + (i - a.first), a.low + (i - a.first), p);
        else store_four(a.values + beside, p);
    }
}

extern "C" __global__ void adamw_f32(const __grid_constant__ AdamwStep<float, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16(const __grid_constant__ AdamwStep<bf16, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32(const __grid_constant__ AdamwStep<float, bf16> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_bf16(const __grid_constant__ AdamwStep<bf16, bf16> args) { adamw(args); }
