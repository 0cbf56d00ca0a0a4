// gelu_tanh(gate) · up, one block a token; `gate_up` [tokens, 2 · width] holds gate, then up.
#include "../common.cuh"

template <class T> struct GegluForward {
    const T *gate_up;    // [tokens, 2 · width]
    T *y;                // [tokens, ldy], the adapter's u after each row
    const Step *step;
    Adapters adapters;
    int ldy, width;
};
MIRRORED(GegluForward<float>, 88, AT(gate_up, 0) AT(y, 8) AT(step, 16) AT(adapters, 24) AT(ldy, 80) AT(width, 84))

template <class T> struct GegluBackward {
    const float *dy;     // [tokens, ldy]: the gradient of y, and after it that of the adapter's u
    const T *gate_up;    // [tokens, 2 · width]
    T *d_gate_up;        // [tokens, 2 · width]
    const Step *step;
    Adapters adapters;
    int ldy, width;
};
MIRRORED(GegluBackward<float>, 96,
         AT(dy, 0) AT(gate_up, 8) AT(d_gate_up, 16) AT(step, 24) AT(adapters, 32) AT(ldy, 88) AT(width, 92))

// gelu_tanh(g) = g · σ(2u), u = C (g + A g³), as cpu.rs has it.
__device__ __forceinline__ float sigmoid_2u(float g) {
    const float u = 0.7978846f * (g + 0.044715f * g * g * g);
    return 1.0f / (1.0f + expf(-2.0f * u));
}

template <class T> __device__ void geglu_forward(const GegluForward<T> &args) {
    extern __shared__ float row[];
    const int token = blockIdx.x, width = args.width;
    uint8_t *masks = (uint8_t *)(row + width);
    begin(args.adapters, args.step, token, width, masks);
    const T *gate = args.gate_up + (size_t)token * 2 * width, *up = gate + width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float g = to_f32(gate[i]);
        const T value = from_f32<T>(g * sigmoid_2u(g) * to_f32(up[i]));
        args.y[(size_t)token * args.ldy + i] = value;
        row[i] = to_f32(value);
    }
    if (args.adapters.count == 0) return;
    __syncthreads();
    adapters_down(args.adapters, row, masks, width, args.y + (size_t)token * args.ldy + width);
}

template <class T> __device__ void geglu_backward(const GegluBackward<T> &args) {
    extern __shared__ float back[];
    const int token = blockIdx.x, width = args.width, total = args.adapters.count * args.adapters.padded;
    float *du = back + args.adapters.count * width;
    uint8_t *masks = (uint8_t *)(du + total);
    begin(args.adapters, args.step, token, width, masks);
    for (int i = threadIdx.x; i < total; i += blockDim.x) du[i] = args.dy[(size_t)token * args.ldy + width + i];
    __syncthreads();
    adapters_back(args.adapters, du, masks, width, back);
    __syncthreads();
    const T *gate = args.gate_up + (size_t)token * 2 * width, *up = gate + width;
    T *d_gate = args.d_gate_up + (size_t)token * 2 * width, *d_up = d_gate + width;
    for (int i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        float4 d4 = four(args.dy + (size_t)token * args.ldy, i);
        const float4 b = back_of(args.adapters, back, width, i);
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

FOR_BOTH_TYPES(geglu_forward, GegluForward)
FOR_BOTH_TYPES(geglu_backward, GegluBackward)
