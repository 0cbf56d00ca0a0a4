// AdamW over one flat arena (formula: cpu.rs), with clipping and the bf16 copy of the embedding.
#include "../common.cuh"

__device__ __forceinline__ void update(float &p, float g, float &m, float &v, const Step &s, float scale) {
    g *= scale;
    m += s.one_minus_beta1 * (g - m);
    v = s.beta2 * v + s.one_minus_beta2 * g * g;
    p = p * s.decay - s.step_size * m / (sqrtf(v) / s.root_of_correction2 + s.eps);
}

// The arena's elements [first, last) are the head: their gradients lie apart, in the compute type,
// and what becomes of them is also written to `copy`, which products read (null in f32, where they
// read the arena itself). `first` is a multiple of four, and so is `last` or it is `n`. A step
// whose gradients are not finite changes nothing.
template <class T>
__device__ void adamw(float *values, const float *gradients, const T *head, float *exp_avg, float *exp_avg_sq, size_t n,
                      bf16 *copy, size_t first, size_t last, const Step *step, const StepResult *result) {
    if (!result->finite) return;
    const Step s = *step;
    const float scale = result->gradient_scale;
    const size_t stride = (size_t)gridDim.x * blockDim.x * 4;
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    for (; i + 3 < n; i += stride) {
        const bool in_head = i >= first && i < last;
        float4 p = __ldcs((const float4 *)(values + i)), m = __ldcs((const float4 *)(exp_avg + i));
        float4 v = __ldcs((const float4 *)(exp_avg_sq + i)), g;
        if (in_head) {
            const T *h = head + (i - first);
            g = make_float4(to_f32(h[0]), to_f32(h[1]), to_f32(h[2]), to_f32(h[3]));
        } else {
            g = *(const float4 *)(gradients + (i < first ? i : i - (last - first)));
        }
        update(p.x, g.x, m.x, v.x, s, scale);
        update(p.y, g.y, m.y, v.y, s, scale);
        update(p.z, g.z, m.z, v.z, s, scale);
        update(p.w, g.w, m.w, v.w, s, scale);
        __stcs((float4 *)(values + i), p);
        __stcs((float4 *)(exp_avg + i), m);
        __stcs((float4 *)(exp_avg_sq + i), v);
        if (!in_head || copy == nullptr) continue;
        __align__(8) bf16 rounded[4] = {from_f32<bf16>(p.x), from_f32<bf16>(p.y), from_f32<bf16>(p.z), from_f32<bf16>(p.w)};
        *(uint2 *)(copy + (i - first)) = *(const uint2 *)rounded;
    }
    for (; i < n; i++)
        update(values[i], gradients[i < first ? i : i - (last - first)], exp_avg[i], exp_avg_sq[i], s, scale);
}

#define PARAMS(T)                                                                                                     \
    (float *values, const float *gradients, const T *head, float *exp_avg, float *exp_avg_sq, size_t n, bf16 *copy,   \
     size_t first, size_t last, const Step *step, const StepResult *result)
FOR_BOTH_TYPES(adamw, PARAMS, (values, gradients, head, exp_avg, exp_avg_sq, n, copy, first, last, step, result))
#undef PARAMS

// The bf16 copy alone, after values have been put in from outside.
extern "C" __global__ void round_to_bf16(const float *values, bf16 *copy, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        copy[i] = from_f32<bf16>(values[i]);
}
