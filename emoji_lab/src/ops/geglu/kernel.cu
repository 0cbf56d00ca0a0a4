// gelu_tanh(gate) · up, one block a token; `gate_up` [tokens, 2 · width] holds gate, then up.
#include "../common.cuh"

// gelu_tanh(g) = g · σ(2u), u = C (g + A g³), as cpu.rs has it.
__device__ __forceinline__ float sigmoid_2u(float g) {
    const float u = 0.7978846f * (g + 0.044715f * g * g * g);
    return 1.0f / (1.0f + expf(-2.0f * u));
}

template <class T>
__device__ void geglu_forward(const T *gate_up, T *y, int ldy, Adapters adapters, const Step *step, int width) {
    extern __shared__ float row[];
    uint8_t *masks = (uint8_t *)(row + width);
    const int token = blockIdx.x;
    begin(adapters, step, token, width, masks);
    const T *gate = gate_up + (size_t)token * 2 * width, *up = gate + width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float g = to_f32(gate[i]);
        const T value = from_f32<T>(g * sigmoid_2u(g) * to_f32(up[i]));
        y[(size_t)token * ldy + i] = value;
        row[i] = to_f32(value);
    }
    if (adapters.count == 0) return;
    __syncthreads();
    adapters_down(adapters, row, masks, width, y + (size_t)token * ldy + width);
}

// `dy` [tokens, ldy] holds the gradient of y, and behind it that of the adapter's u.
template <class T>
__device__ void geglu_backward(const float *dy, int ldy, Adapters adapters, const Step *step, const T *gate_up,
                               T *d_gate_up, int width) {
    extern __shared__ float back[];
    float *du = back + adapters.count * width;
    const int total = adapters.count * adapters.padded, token = blockIdx.x;
    uint8_t *masks = (uint8_t *)(du + total);
    begin(adapters, step, token, width, masks);
    for (int i = threadIdx.x; i < total; i += blockDim.x) du[i] = dy[(size_t)token * ldy + width + i];
    __syncthreads();
    adapters_back(adapters, du, masks, width, back);
    __syncthreads();
    const T *gate = gate_up + (size_t)token * 2 * width, *up = gate + width;
    T *d_gate = d_gate_up + (size_t)token * 2 * width, *d_up = d_gate + width;
    for (int i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        float4 d4 = four(dy + (size_t)token * ldy, i);
        const float4 b = back_of(adapters, back, width, i);
        d4.x += b.x, d4.y += b.y, d4.z += b.z, d4.w += b.w;
        const float ds[4] = {d4.x, d4.y, d4.z, d4.w};
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const float d = ds[n], g = to_f32(gate[i + n]), s = sigmoid_2u(g);
            // Past |g| = 30 the slope's second term is zero; clamping keeps g³ finite.
            const float t = fminf(fmaxf(g, -30.0f), 30.0f);
            const float slope = s + t * s * (1.0f - s) * 2.0f * 0.7978846f * (1.0f + 3.0f * 0.044715f * t * t);
            d_gate[i + n] = from_f32<T>(d * to_f32(up[i + n]) * slope);
            d_up[i + n] = from_f32<T>(d * g * s);
        }
    }
}

#define PARAMS(T) (const T *gate_up, T *y, int ldy, Adapters adapters, const Step *step, int width)
FOR_BOTH_TYPES(geglu_forward, PARAMS, (gate_up, y, ldy, adapters, step, width))
#undef PARAMS
#define PARAMS(T)                                                                                                     \
    (const float *dy, int ldy, Adapters adapters, const Step *step, const T *gate_up, T *d_gate_up, int width)
FOR_BOTH_TYPES(geglu_backward, PARAMS, (dy, ldy, adapters, step, gate_up, d_gate_up, width))
#undef PARAMS
