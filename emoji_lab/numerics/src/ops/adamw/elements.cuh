// What AdamW does with four elements next to each other: how they are read and written once, and the formula
// (cpu.rs).
#pragma once
#include "../common.cuh"

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
// Four moments of each kind as words of bf16; `i` is the first one's place among all elements.
__device__ __forceinline__ void rounded_moments(uint2 &m_words, uint2 &v_words, const float (&m)[4], const float (&v)[4],
                                                const Step &s, size_t i) {
    uint32_t r[4], a[4], b[4];
    philox(s.seed, s.last_pass << 16 | 0xffff, i / 4, r);
#pragma unroll
    for (int n = 0; n < 4; n++) a[n] = rounded(m[n], r[n] & 0xffff), b[n] = rounded(v[n], r[n] >> 16);
    m_words = make_uint2(a[0] | a[1] << 16, a[2] | a[3] << 16);
    v_words = make_uint2(b[0] | b[1] << 16, b[2] | b[3] << 16);
}
__device__ __forceinline__ void store_moments(bf16 *m_to, bf16 *v_to, const float (&m)[4], const float (&v)[4],
                                              const Step &s, size_t i) {
    uint2 a, b;
    rounded_moments(a, b, m, v, s, i);
    __stcs((uint2 *)m_to, a);
    __stcs((uint2 *)v_to, b);
}

// Four values of their two halves, and back.
__device__ __forceinline__ void join_four(float (&p)[4], uint2 h, uint2 l) {
    p[0] = joined(h.x & 0xffff, l.x & 0xffff), p[1] = joined(h.x >> 16, l.x >> 16);
    p[2] = joined(h.y & 0xffff, l.y & 0xffff), p[3] = joined(h.y >> 16, l.y >> 16);
}
__device__ __forceinline__ void split_four(uint2 &high, uint2 &low, const float (&p)[4]) {
    uint32_t h[4], l[4];
#pragma unroll
    for (int n = 0; n < 4; n++) split(p[n], h[n], l[n]);
    high = make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16);
    low = make_uint2(l[0] | l[1] << 16, l[2] | l[3] << 16);
}

__device__ __forceinline__ void load_product(float (&p)[4], const float *from, const int16_t *) { load_four(p, from); }
__device__ __forceinline__ void load_product(float (&p)[4], const bf16 *high, const int16_t *low) {
    join_four(p, __ldcs((const uint2 *)high), __ldcs((const uint2 *)low));
}
__device__ __forceinline__ void store_product(float *to, int16_t *, const float (&p)[4]) { store_four(to, p); }
__device__ __forceinline__ void store_product(bf16 *high, int16_t *low, const float (&p)[4]) {
    uint2 h, l;
    split_four(h, l, p);
    __stcs((uint2 *)high, h);
    __stcs((uint2 *)low, l);
}

// The factors of one group of parameters: clipping, decay and step size beside what all have.
struct Rates {
    float scale, decay, step_size, one_by_root;    // the last one of the second moment's correction
    __device__ __forceinline__ static Rates of(const Factors &f, float scale, float decay, float step_size) {
        return {scale, decay, step_size, 1.0f / f.root_of_correction2};
    }
};

// The GPU's own root, off by a last bit at most. Below 2⁻¹²⁶, too, it is no zero.
__device__ __forceinline__ float near_root(float x) {
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
}

// The formula. `g` is the gradient before clipping. The moments are computed as on the CPU; the quotient that a value
// moves by is off by up to four units in its last place (the root, its correction, `__fdividef`'s two), a few
// hundred-millionths of the step. Exact ones have branches in them, and elements then wait for each other.
__device__ __forceinline__ void adamw_of_four(float (&p)[4], const float (&g)[4], float (&m)[4], float (&v)[4],
                                              const Factors &f, const Rates &r) {
#pragma unroll
    for (int n = 0; n < 4; n++) {
        const float d = g[n] * r.scale;
        m[n] += f.one_minus_beta1 * (d - m[n]);
        v[n] = f.beta2 * v[n] + f.one_minus_beta2 * d * d;
        const float denominator = near_root(v[n]) * r.one_by_root + f.eps;
        p[n] = p[n] * r.decay - __fdividef(r.step_size * m[n], denominator);
    }
}
