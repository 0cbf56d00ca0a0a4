// AdamW over one flat arena (formula: cpu.rs), with clipping. Moments are f32 or bf16 (`M`).
#include "../common.cuh"

// A piece of the arena, a block's work: elements that lie next to each other and are treated alike.
// `first`, `at` and `len` are multiples of 4.
struct Piece {
    uint64_t first;    // its first element among all: there its moments lie
    uint64_t at;       // and in the buffer of its values and gradients
    uint32_t len;
    uint32_t kind;     // bits of the constants below
};
MIRRORED(Piece, 24, AT(first, 0) AT(at, 8) AT(len, 16) AT(kind, 20))
const uint32_t OF_PRODUCTS = 1;     // what products read: values of `T` apart from the others
const uint32_t OF_EMBEDDING = 2;    // has the embedding's learning rate
const uint32_t DECAYS = 4;

// What products read (head, matrices) lies apart from the other values, in the compute type `T`, so that
// they read it as it is. Where that is bf16, `low` has the other half of the f32 that is trained:
// value = high · 2¹⁶ + low, as integers. `G` is the type of its gradients.
template <class T, class M = T, class G = T> struct AdamwStep {
    float *values;                    // of all others
    T *products;
    int16_t *low;                     // as `products`; null in f32
    const float *gradients;           // as `values`
    const G *product_gradients;       // as `products`
    M *exp_avg, *exp_avg_sq;          // of everything
    const Step *step;
    const StepResult *result;
    const Piece *pieces;              // one per block
};
MIRRORED(AdamwStep<float>, 80,
         AT(values, 0) AT(products, 8) AT(low, 16) AT(gradients, 24) AT(product_gradients, 32) AT(exp_avg, 40)
         AT(exp_avg_sq, 48) AT(step, 56) AT(result, 64) AT(pieces, 72))

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

__device__ __forceinline__ void load_product(float (&p)[4], const float *from, const int16_t *) { load_four(p, from); }
__device__ __forceinline__ void load_product(float (&p)[4], const bf16 *high, const int16_t *low) {
    const uint2 h = __ldcs((const uint2 *)high), l = __ldcs((const uint2 *)low);
    p[0] = joined(h.x & 0xffff, l.x & 0xffff), p[1] = joined(h.x >> 16, l.x >> 16);
    p[2] = joined(h.y & 0xffff, l.y & 0xffff), p[3] = joined(h.y >> 16, l.y >> 16);
}
__device__ __forceinline__ void store_product(float *to, int16_t *, const float (&p)[4]) { store_four(to, p); }
__device__ __forceinline__ void store_product(bf16 *high, int16_t *low, const float (&p)[4]) {
    uint32_t h[4], l[4];
#pragma unroll
    for (int n = 0; n < 4; n++) split(p[n], h[n], l[n]);
    __stcs((uint2 *)high, make_uint2(h[0] | h[1] << 16, h[2] | h[3] << 16));
    __stcs((uint2 *)low, make_uint2(l[0] | l[1] << 16, l[2] | l[3] << 16));
}

// A step whose gradients are not finite changes nothing.
template <class T, class M, class G> __device__ void adamw(const AdamwStep<T, M, G> &a) {
    const Piece piece = a.pieces[blockIdx.x];
    if (!a.result->finite) return;
    const Step s = *a.step;
    const Factors &f = s.factors;
    const float scale = a.result->gradient_scale;
    const bool of_products = piece.kind & OF_PRODUCTS, of_embedding = piece.kind & OF_EMBEDDING;
    const float decay = !(piece.kind & DECAYS) ? 1.0f : of_embedding ? s.embedding_decay : f.decay;
    const float step_size = of_embedding ? s.embedding_step_size : f.step_size;
    for (uint32_t n4 = threadIdx.x * 4; n4 < piece.len; n4 += blockDim.x * 4) {
        const size_t i = piece.first + n4, at = piece.at + n4;
        float p[4], g[4], m[4], v[4];
        load_four(m, a.exp_avg + i);
        load_four(v, a.exp_avg_sq + i);
        if (of_products) {
            load_product(p, a.products + at, a.low + at);
            load_four(g, a.product_gradients + at);
        } else {
            load_four(p, a.values + at);
            load_four(g, a.gradients + at);
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            g[n] *= scale;
            m[n] += f.one_minus_beta1 * (g[n] - m[n]);
            v[n] = f.beta2 * v[n] + f.one_minus_beta2 * g[n] * g[n];
            p[n] = p[n] * decay - step_size * m[n] / (sqrtf(v[n]) / f.root_of_correction2 + f.eps);
        }
        store_moments(a.exp_avg + i, a.exp_avg_sq + i, m, v, s, i);
        if (of_products) store_product(a.products + at, a.low + at, p);
        else store_four(a.values + at, p);
    }
}

// By the type of the moments, and of the gradients of what products read: the compute type, or f32 where
// several micro-batches are added up.
extern "C" __global__ void adamw_f32(const __grid_constant__ AdamwStep<float, float, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16(const __grid_constant__ AdamwStep<bf16, float, bf16> args) { adamw(args); }
extern "C" __global__ void adamw_f32_gradients_f32(const __grid_constant__ AdamwStep<float, float, float> args) { adamw(args); }
extern "C" __global__ void adamw_f32_gradients_bf16(const __grid_constant__ AdamwStep<bf16, float, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32(const __grid_constant__ AdamwStep<float, bf16, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_bf16(const __grid_constant__ AdamwStep<bf16, bf16, bf16> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32_gradients_f32(const __grid_constant__ AdamwStep<float, bf16, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32_gradients_bf16(const __grid_constant__ AdamwStep<bf16, bf16, float> args) { adamw(args); }
