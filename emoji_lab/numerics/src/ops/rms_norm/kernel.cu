// RMSNorm with what stands around it in a decoder layer, one block a token, or a few (`N`), of which each has its part
// of the threads:
//   forward:  x += rms(branch) · (1 + w_post);  y = rms(x) · (1 + w);  u = dropout(y) Aᵀ
//   backward: the same in reverse, for the stream and then for the branch.
// Without a branch, without adapters, these are the plain norm and its gradient.
#include "../adapters.cuh"

// What joins the stream before the norm, after a norm of its own. All three are null where nothing does.
template <class T> struct Branch {
    const T *rows;          // [tokens, width]
    const float *weight;    // [width]
    float *rstd;            // [tokens]: written forward, read backward
};
MIRRORED(Branch<float>, 24, AT(rows, 0) AT(weight, 8) AT(rstd, 16))

template <class T> struct NormForward {
    const float *x;         // [tokens, width]
    Branch<T> branch;
    float *stream;          // [tokens, width]: x and the branch; null without one
    const float *weight;    // [width]
    float *rstd;            // [tokens]
    T *y;                   // [tokens, ldy], u after each row
    const Step *step;       // null without dropout
    Adapters adapters;
    int ldy, width;
    float eps;
};
MIRRORED(NormForward<float>, 144,
         AT(x, 0) AT(branch, 8) AT(stream, 32) AT(weight, 40) AT(rstd, 48) AT(y, 56) AT(step, 64) AT(adapters, 72)
         AT(ldy, 128) AT(width, 132) AT(eps, 136))

template <class T> struct NormBackward {
    const float *dy;        // [tokens, ldy]: the gradient of y, and after it that of u
    const float *x;         // [tokens, width], as the forward pass normalised it
    const float *weight;    // [width]
    const float *rstd;      // [tokens]
    const float *d_in;      // [tokens, width]: added to the stream's gradient; may be null
    float *d_out;           // [tokens, width]
    Branch<T> branch;
    T *d_branch;            // [tokens, width]; null without a branch
    const Step *step;       // null without dropout
    Adapters adapters;
    int ldy, width;
};
MIRRORED(NormBackward<float>, 152,
         AT(dy, 0) AT(x, 8) AT(weight, 16) AT(rstd, 24) AT(d_in, 32) AT(d_out, 40) AT(branch, 48) AT(d_branch, 72)
         AT(step, 80) AT(adapters, 88) AT(ldy, 144) AT(width, 148))

// The part of the block that has a token, and what a thread of it has of a row: K times four values next to each other.
template <int N, int K> struct Part {
    int group, thread, threads;
    __device__ __forceinline__ Part() {
        threads = blockDim.x / N, group = N == 1 ? 0 : threadIdx.x / threads, thread = threadIdx.x - group * threads;
    }
    // `f(k, i)` for each: the k-th has values i to i + 3.
    template <class F> __device__ __forceinline__ void each(int width, F f) const {
#pragma unroll
        for (int k = 0; k < K; k++) {
            const int i = (thread + k * threads) * 4;
            if (i < width) f(k, i);
        }
    }
};

__device__ __forceinline__ float4 times_one_and(float4 x, float4 w) {
    return make_float4(x.x * (1.0f + w.x), x.y * (1.0f + w.y), x.z * (1.0f + w.z), x.w * (1.0f + w.w));
}
__device__ __forceinline__ float4 times(float4 x, float f) { return make_float4(x.x * f, x.y * f, x.z * f, x.w * f); }
__device__ __forceinline__ float4 plus(float4 a, float4 b) { return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

// Whatever is read is on its way before anything is computed with it: what does not depend on the kernel in front before
// the wait for it, the rest right behind.
template <class T, int N, int K> __device__ __forceinline__ void norm_forward_of(const NormForward<T> &args) {
    extern __shared__ float rows[];
    const Part<N, K> part;
    const int first = blockIdx.x * N, token = first + part.group, width = args.width;
    const Adapters &l = args.adapters;
    uint8_t *masks = (uint8_t *)(rows + N * width);
    float *row = rows + part.group * width;
    const size_t at = (size_t)token * width;
    const bool branched = args.branch.rows != nullptr;
    begin<N>(l, args.step, first, width, masks);
    float4 x[K], b[K], weight[K], branch_weight[K];
    part.each(width, [&](int k, int i) {
        weight[k] = four(args.weight, i);
        if (branched) branch_weight[k] = four(args.branch.weight, i);
    });
    wait_for_previous();
    part.each(width, [&](int k, int i) {
        x[k] = four(args.x + at, i);
        if (branched) b[k] = four(args.branch.rows + at, i);
    });
    if (branched) {
        float squares = 0.0f;
        part.each(width, [&](int k, int) { squares += dot4(b[k], b[k]); });
        const float r = rsqrtf(block_sum<N>(squares) / width + args.eps);
        if (part.thread == 0) args.branch.rstd[token] = r;
        part.each(width, [&](int k, int i) {
            x[k] = plus(x[k], times_one_and(times(b[k], r), branch_weight[k]));
            put_four(args.stream + at, i, x[k]);
        });
    }
    float squares = 0.0f;
    part.each(width, [&](int k, int) { squares += dot4(x[k], x[k]); });
    const float r = rsqrtf(block_sum<N>(squares) / width + args.eps);
    if (part.thread == 0) args.rstd[token] = r;
    T *y = args.y + (size_t)token * args.ldy;
    part.each(width, [&](int k, int i) {
        *(float4 *)(row + i) = put_four(y, i, times_one_and(times(x[k], r), weight[k]));
    });
    if (l.count == 0) return;
    __syncthreads();
    adapters_down<N>(l, rows, masks, width, args.y + (size_t)first * args.ldy + width, args.ldy);
}

// With n = x · rstd and g = dy · (1 + w): dx = rstd · (g − n · mean(g · n)).
template <class T, int N, int K> __device__ __forceinline__ void norm_backward_of(const NormBackward<T> &args) {
    extern __shared__ float back[];
    const Part<N, K> part;
    const Adapters &l = args.adapters;
    const int first = blockIdx.x * N, token = first + part.group, width = args.width, total = l.count * l.padded;
    float *du = back + N * l.count * width;
    uint8_t *masks = (uint8_t *)(du + N * total);
    const size_t at = (size_t)token * width;
    const bool branched = args.branch.rows != nullptr, added = args.d_in != nullptr;
    begin<N>(l, args.step, first, width, masks);
    float4 g[K], x[K], d[K], b[K], weight[K], branch_weight[K];
    part.each(width, [&](int k, int i) {
        weight[k] = four(args.weight, i);
        if (branched) branch_weight[k] = four(args.branch.weight, i);
    });
    wait_for_previous();
    for (int i = threadIdx.x; i < N * total; i += blockDim.x) {
        const int r = N == 1 ? 0 : piece_of(i, total);
        du[i] = args.dy[(size_t)(first + r) * args.ldy + width + i - r * total];
    }
    part.each(width, [&](int k, int i) {
        g[k] = four(args.dy + (size_t)token * args.ldy, i);
        x[k] = four(args.x + at, i);
        if (added) d[k] = four(args.d_in + at, i);
        if (branched) b[k] = four(args.branch.rows + at, i);
    });
    const float r = args.rstd[token], branch_r = branched ? args.branch.rstd[token] : 0.0f;
    if (l.count > 0) {
        __syncthreads();
        adapters_back<N>(l, du, masks, width, back);
        __syncthreads();
    }
    float dot = 0.0f;
    part.each(width, [&](int k, int i) {
        g[k] = times_one_and(plus(g[k], back_of(l, back + part.group * l.count * width, width, i)), weight[k]);
        dot += dot4(g[k], x[k]);
    });
    float mean = block_sum<N>(dot) * r / width;
    dot = 0.0f;
    part.each(width, [&](int k, int i) {
        // Fused as written, not as the compiler sees fit: the same bits from every version of it.
        const float4 c = make_float4(g[k].x - x[k].x * r * mean, g[k].y - x[k].y * r * mean, g[k].z - x[k].z * r * mean,
                                     g[k].w - x[k].w * r * mean);
        d[k] = added ? make_float4(__fmaf_rn(r, c.x, d[k].x), __fmaf_rn(r, c.y, d[k].y), __fmaf_rn(r, c.z, d[k].z),
                                   __fmaf_rn(r, c.w, d[k].w))
                     : times(c, r);
        put_four(args.d_out + at, i, d[k]);
        if (!branched) return;
        d[k] = times_one_and(d[k], branch_weight[k]);
        dot += dot4(d[k], b[k]);
    });
    if (!branched) return;
    mean = block_sum<N>(dot) * branch_r / width;
    part.each(width, [&](int k, int i) {
        const float f = branch_r;
        put_four(args.d_branch + at, i,
                 make_float4(f * (d[k].x - b[k].x * f * mean), f * (d[k].y - b[k].y * f * mean), f * (d[k].z - b[k].z * f * mean),
                             f * (d[k].w - b[k].w * f * mean)));
    });
}

// For one token a block, two, and four, with rows of up to 4, 4 and 2 values for each of the block's threads; and for one
// with rows of up to 32 (`cuda.rs` chooses).
template <class T> __device__ void norm_forward(const NormForward<T> &args) { norm_forward_of<T, 1, 1>(args); }
template <class T> __device__ void norm_forward_2(const NormForward<T> &args) { norm_forward_of<T, 2, 2>(args); }
template <class T> __device__ void norm_forward_4(const NormForward<T> &args) { norm_forward_of<T, 4, 2>(args); }
template <class T> __device__ void norm_forward_wide(const NormForward<T> &args) {
    if (args.width <= 8 * blockDim.x) norm_forward_of<T, 1, 2>(args);
    else norm_forward_of<T, 1, 8>(args);
}
FOR_BOTH_TYPES_OF((512), norm_forward, NormForward)
FOR_BOTH_TYPES_OF((512), norm_forward_2, NormForward)
FOR_BOTH_TYPES_OF((512), norm_forward_4, NormForward)
FOR_BOTH_TYPES_OF((512), norm_forward_wide, NormForward)

template <class T> __device__ void norm_backward(const NormBackward<T> &args) { norm_backward_of<T, 1, 1>(args); }
template <class T> __device__ void norm_backward_2(const NormBackward<T> &args) { norm_backward_of<T, 2, 2>(args); }
template <class T> __device__ void norm_backward_4(const NormBackward<T> &args) { norm_backward_of<T, 4, 2>(args); }
template <class T> __device__ void norm_backward_wide(const NormBackward<T> &args) {
    if (args.width <= 8 * blockDim.x) norm_backward_of<T, 1, 2>(args);
    else norm_backward_of<T, 1, 8>(args);
}
// Registers for 768 threads, so that there is room beside a block.
FOR_BOTH_TYPES_OF((768), norm_backward, NormBackward)
FOR_BOTH_TYPES_OF((512), norm_backward_2, NormBackward)
FOR_BOTH_TYPES_OF((512), norm_backward_4, NormBackward)
FOR_BOTH_TYPES_OF((512), norm_backward_wide, NormBackward)

// A norm's weight: its gradient is the sum over rows of dy · x · rstd.
template <class T> struct WeightSum {
    const float *dy;       // [rows, ld]
    const float *x;        // [rows, width]: what was normalised; or
    const T *branch;       // [rows, width]: the same in the compute type; both null where `dy` is the product of all
    const float *rstd;     // [rows]; null with them
    float *dw;             // [width]; null where there is nothing to sum
    int rows, ld;
};
MIRRORED(WeightSum<float>, 48, AT(dy, 0) AT(x, 8) AT(branch, 16) AT(rstd, 24) AT(dw, 32) AT(rows, 40) AT(ld, 44))

template <class T> struct NormWeights {
    WeightSum<T> of[2];
    const Step *step;
    int width;
};
MIRRORED(NormWeights<float>, 112, AT(of, 0) AT(step, 96) AT(width, 104))

const int SUM_ROWS = 16;

// Grid [columns / 32, 2], blocks of 32 columns by `SUM_ROWS` rows. Added to an earlier micro-batch's.
template <class T> __device__ void norm_weights(const NormWeights<T> &args) {
    __shared__ float parts[SUM_ROWS][32];
    const WeightSum<T> w = blockIdx.y == 0 ? args.of[0] : args.of[1];
    if (w.dw == nullptr) return;
    const int column = blockIdx.x * 32 + threadIdx.x, width = args.width;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (int r = threadIdx.y; r < w.rows; r += SUM_ROWS) {
            const float d = w.dy[(size_t)r * w.ld + column];
            const size_t at = (size_t)r * width + column;
            if (w.rstd == nullptr) sum += d;
            else sum += d * (w.rstd[r] * (w.x != nullptr ? w.x[at] : to_f32(w.branch[at])));
        }
    }
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || column >= width) return;
    for (int r = 1; r < SUM_ROWS; r++) sum += parts[r][threadIdx.x];
    w.dw[column] = args.step->first_micro ? sum : w.dw[column] + sum;
}

FOR_BOTH_TYPES(norm_weights, NormWeights)
