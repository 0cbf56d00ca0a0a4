// AdamW over one flat arena (formula: cpu.rs), with clipping and the bf16 copy of the embedding.
#include "../common.cuh"

__device__ __forceinline__ void update(float &p, float g, float &m, float &v, const Step &s, float scale) {
    g *= scale;
    m += s.one_minus_beta1 * (g - m);
    v = s.beta2 * v + s.one_minus_beta2 * g * g;
    p = p * s.decay - s.step_size * m / (sqrtf(v) / s.root_of_correction2 + s.eps);
}

// Elements [first, last) (the head) are also written to `copy`, which products read. `first` is a
// multiple of four. A step whose gradients are not finite changes nothing.
extern "C" __global__ void adamw(float *values, const float *gradients, float *exp_avg, float *exp_avg_sq, size_t n,
                                 bf16 *copy, size_t first, size_t last, const Step *step, const StepResult *result) {
    if (!result->finite) return;
    const Step s = *step;
    const float scale = result->gradient_scale;
    const size_t stride = (size_t)gridDim.x * blockDim.x * 4;
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    for (; i + 3 < n; i += stride) {
        float4 p = *(const float4 *)(values + i), m = *(const float4 *)(exp_avg + i), v = *(const float4 *)(exp_avg_sq + i);
        const float4 g = *(const float4 *)(gradients + i);
        update(p.x, g.x, m.x, v.x, s, scale);
        update(p.y, g.y, m.y, v.y, s, scale);
        update(p.z, g.z, m.z, v.z, s, scale);
        update(p.w, g.w, m.w, v.w, s, scale);
        *(float4 *)(values + i) = p;
        *(float4 *)(exp_avg + i) = m;
        *(float4 *)(exp_avg_sq + i) = v;
        if (i < first || i >= last) continue;
        bf16 four[4] = {from_f32<bf16>(p.x), from_f32<bf16>(p.y), from_f32<bf16>(p.z), from_f32<bf16>(p.w)};
        if (i + 3 < last) *(uint2 *)(copy + (i - first)) = *(const uint2 *)four;
        else
            for (int k = 0; i + k < last; k++) copy[i - first + k] = four[k];
    }
    for (; i < n; i++) {
        update(values[i], gradients[i], exp_avg[i], exp_avg_sq[i], s, scale);
        if (i >= first && i < last) copy[i - first] = from_f32<bf16>(values[i]);
    }
}

// The bf16 copy alone, after values have been put in from outside.
extern "C" __global__ void round_to_bf16(const float *values, bf16 *copy, size_t n) {
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        copy[i] = from_f32<bf16>(values[i]);
}
