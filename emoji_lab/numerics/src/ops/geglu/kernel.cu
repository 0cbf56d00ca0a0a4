// gelu_tanh(gate) · up, one block a token, or a few (`N`); `gate_up` [tokens, 2 · width] holds gate, then up.
#include "../adapters.cuh"

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

__device__ __forceinline__ float geglu_of(float gate, float up) { return gate * sigmoid_2u(gate) * up; }

template <class T, int N> __device__ void geglu_forward_of(const GegluForward<T> &args) {
    extern __shared__ float rows[];
    const int token = blockIdx.x * N, width = args.width, fours = width / 4;
    uint8_t *masks = (uint8_t *)(rows + N * width);
    begin<N>(args.adapters, args.step, token, width, masks);
    wait_for_previous();
    T *y = args.y + (size_t)token * args.ldy;
    for (int job = threadIdx.x; job < N * fours; job += blockDim.x) {
        const int r = N == 1 ? 0 : piece_of(job, fours), i = (job - r * fours) * 4;
        const T *gate = args.gate_up + (size_t)(token + r) * 2 * width;
        const float4 g = four(gate, i), up = four(gate + width, i);
        const float4 value = make_float4(geglu_of(g.x, up.x), geglu_of(g.y, up.y), geglu_of(g.z, up.z), geglu_of(g.w, up.w));
        *(float4 *)(rows + r * width + i) = put_four(y + (size_t)r * args.ldy, i, value);
    }
    if (args.adapters.count == 0) return;
    __syncthreads();
    adapters_down<N>(args.adapters, rows, masks, width, y + width, args.ldy);
}

// The gradients of gate and up, of that of the product `d`.
__device__ __forceinline__ void geglu_back(float d, float g, float up, float &d_gate, float &d_up) {
    const float s = sigmoid_2u(g);
    // Past |g| = 30 the slope's second term is zero; clamping keeps g³ finite.
    const float t = fminf(fmaxf(g, -30.0f), 30.0f);
    const float slope = s + t * s * (1.0f - s) * 2.0f * 0.7978846f * (1.0f + 3.0f * 0.044715f * t * t);
    d_gate = d * up * slope;
    d_up = d * g * s;
}

// HELD: whether a thread has at most N times four values, which are then on their way before what comes through the
// adapters is made.
template <class T, int N, bool HELD> __device__ __forceinline__ void geglu_backward_of(const GegluBackward<T> &args) {
    extern __shared__ float back[];
    const Adapters &l = args.adapters;
    const int token = blockIdx.x * N, width = args.width, total = l.count * l.padded, fours = width / 4;
    float *du = back + N * l.count * width;
    uint8_t *masks = (uint8_t *)(du + N * total);
    begin<N>(l, args.step, token, width, masks);
    wait_for_previous();
    const float *dy = args.dy + (size_t)token * args.ldy;
    float4 held_d[N], held_gate[N], held_up[N];
    if (HELD) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int job = threadIdx.x + k * blockDim.x, r = N == 1 ? 0 : piece_of(job, fours), i = (job - r * fours) * 4;
            if (job >= N * fours) continue;
            const T *gate = args.gate_up + (size_t)(token + r) * 2 * width;
            held_d[k] = four(dy + (size_t)r * args.ldy, i), held_gate[k] = four(gate, i), held_up[k] = four(gate + width, i);
        }
    }
    if (l.count > 0) {
        for (int i = threadIdx.x; i < N * total; i += blockDim.x) {
            const int r = N == 1 ? 0 : piece_of(i, total);
            du[i] = dy[(size_t)r * args.ldy + width + i - r * total];
        }
        __syncthreads();
        adapters_back<N>(l, du, masks, width, back);
        __syncthreads();
    }
    const auto finish = [&](int r, int i, float4 d, float4 g, float4 up) {
        const size_t at = (size_t)(token + r) * 2 * width;
        const float4 b = back_of(l, back + r * l.count * width, width, i);
        float4 d_gate, d_up;
        d.x += b.x, d.y += b.y, d.z += b.z, d.w += b.w;
        geglu_back(d.x, g.x, up.x, d_gate.x, d_up.x), geglu_back(d.y, g.y, up.y, d_gate.y, d_up.y);
        geglu_back(d.z, g.z, up.z, d_gate.z, d_up.z), geglu_back(d.w, g.w, up.w, d_gate.w, d_up.w);
        put_four(args.d_gate_up + at, i, d_gate), put_four(args.d_gate_up + at + width, i, d_up);
    };
    if (HELD) {
#pragma unroll
        for (int k = 0; k < N; k++) {
            const int job = threadIdx.x + k * blockDim.x, r = N == 1 ? 0 : piece_of(job, fours), i = (job - r * fours) * 4;
            if (job < N * fours) finish(r, i, held_d[k], held_gate[k], held_up[k]);
        }
        return;
    }
    for (int job = threadIdx.x; job < N * fours; job += blockDim.x) {
        const int r = N == 1 ? 0 : piece_of(job, fours), i = (job - r * fours) * 4;
        const T *gate = args.gate_up + (size_t)(token + r) * 2 * width;
        finish(r, i, four(dy + (size_t)r * args.ldy, i), four(gate, i), four(gate + width, i));
    }
}
template <class T, int N> __device__ void geglu_backward_any(const GegluBackward<T> &args) {
    if (args.width <= 4 * blockDim.x) geglu_backward_of<T, N, true>(args);
    else geglu_backward_of<T, N, false>(args);
}

// For one token a block, two, and four.
template <class T> __device__ void geglu_forward(const GegluForward<T> &args) { geglu_forward_of<T, 1>(args); }
template <class T> __device__ void geglu_forward_2(const GegluForward<T> &args) { geglu_forward_of<T, 2>(args); }
template <class T> __device__ void geglu_forward_4(const GegluForward<T> &args) { geglu_forward_of<T, 4>(args); }
FOR_BOTH_TYPES_OF((512), geglu_forward, GegluForward)
FOR_BOTH_TYPES_OF((512), geglu_forward_2, GegluForward)
FOR_BOTH_TYPES_OF((512), geglu_forward_4, GegluForward)

template <class T> __device__ void geglu_backward(const GegluBackward<T> &args) { geglu_backward_any<T, 1>(args); }
template <class T> __device__ void geglu_backward_2(const GegluBackward<T> &args) { geglu_backward_any<T, 2>(args); }
template <class T> __device__ void geglu_backward_4(const GegluBackward<T> &args) { geglu_backward_any<T, 4>(args); }
FOR_BOTH_TYPES_OF((512), geglu_backward, GegluBackward)
FOR_BOTH_TYPES_OF((512), geglu_backward_2, GegluBackward)
FOR_BOTH_TYPES_OF((512), geglu_backward_4, GegluBackward)
