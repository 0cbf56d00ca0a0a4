// RMSNorm with what stands around it in a decoder layer, one block a token, or a few (`N`), of which each has its part
// of the threads:
//   forward:  x += rms(branch) · (1 + w_post);  y = rms(x) · (1 + w);  u = dropout(y) Aᵀ
//   backward: the same in reverse, for the stream and then for the branch.
// Without a branch, without adapters, these are the plain norm and its gradient.
#include "../common.cuh"

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

// The part of the block that has a token.
template <int N> struct Part {
    int group, thread, threads;
    __device__ __forceinline__ Part() {
        threads = blockDim.x / N, group = N == 1 ? 0 : threadIdx.x / threads, thread = threadIdx.x - group * threads;
    }
};

__device__ __forceinline__ float4 times_one_and(float4 x, float4 w) {
    return make_float4(x.x * (1.0f + w.x), x.y * (1.0f + w.y), x.z * (1.0f + w.z), x.w * (1.0f + w.w));
}
__device__ __forceinline__ float4 times(float4 x, float f) { return make_float4(x.x * f, x.y * f, x.z * f, x.w * f); }

template <class T, int N> __device__ void norm_forward_of(const NormForward<T> &args) {
    extern __shared__ float rows[];
    const Part<N> part;
    const int first = blockIdx.x * N, token = first + part.group, width = args.width;
    uint8_t *masks = (uint8_t *)(rows + N * width);
    float *row = rows + part.group * width;
    const size_t at = (size_t)token * width;
    begin<N>(args.adapters, args.step, first, width, masks);
    const bool branched = args.branch.rows != nullptr;
    if (branched) {
        float squares = 0.0f;
        for (int i = part.thread * 4; i < width; i += part.threads * 4) {
            const float4 b = four(args.branch.rows + at, i);
            *(float4 *)(row + i) = four(args.x + at, i);
            squares += dot4(b, b);
        }
        const float r = rsqrtf(block_sum<N>(squares) / width + args.eps);
        if (part.thread == 0) args.branch.rstd[token] = r;
        for (int i = part.thread * 4; i < width; i += part.threads * 4) {
            const float4 b = times_one_and(times(four(args.branch.rows + at, i), r), four(args.branch.weight, i));
            float4 x = four(row, i);
            x.x += b.x, x.y += b.y, x.z += b.z, x.w += b.w;
            *(float4 *)(row + i) = put_four(args.stream + at, i, x);
        }
    } else {
        for (int i = part.thread * 4; i < width; i += part.threads * 4) *(float4 *)(row + i) = four(args.x + at, i);
    }
    // A thread reads here what it has written itself.
    float squares = 0.0f;
    for (int i = part.thread * 4; i < width; i += part.threads * 4) {
        const float4 x = four(row, i);
        squares += dot4(x, x);
    }
    const float r = rsqrtf(block_sum<N>(squares) / width + args.eps);
    if (part.thread == 0) args.rstd[token] = r;
    T *y = args.y + (size_t)token * args.ldy;
    for (int i = part.thread * 4; i < width; i += part.threads * 4) {
        const float4 value = times_one_and(times(four(row, i), r), four(args.weight, i));
        *(float4 *)(row + i) = put_four(y, i, value);
    }
    if (args.adapters.count == 0) return;
    __syncthreads();
    adapters_down<N>(args.adapters, rows, masks, width, args.y + (size_t)first * args.ldy + width, args.ldy);
}

// With n = x · rstd and g = dy · (1 + w): dx = rstd · (g − n · mean(g · n)).
template <class T, int N> __device__ void norm_backward_of(const NormBackward<T> &args) {
    extern __shared__ float rows[];
    const Part<N> part;
    const Adapters &l = args.adapters;
    const int first = blockIdx.x * N, token = first + part.group, width = args.width, total = l.count * l.padded;
    float *row = rows + part.group * width, *back = rows + N * width, *du = back + N * l.count * width;
    uint8_t *masks = (uint8_t *)(du + N * total);
    const size_t at = (size_t)token * width;
    begin<N>(l, args.step, first, width, masks);
    if (l.count > 0) {
        for (int i = threadIdx.x; i < N * total; i += blockDim.x) {
            const int r = N == 1 ? 0 : i / total;
            du[i] = args.dy[(size_t)(first + r) * args.ldy + width + i - r * total];
        }
        __syncthreads();
        adapters_back<N>(l, du, masks, width, back);
        __syncthreads();
    }
    float dot = 0.0f;
    for (int i = part.thread * 4; i < width; i += part.threads * 4) {
        float4 g = four(args.dy + (size_t)token * args.ldy, i);
        const float4 b = back_of(l, back + part.group * l.count * width, width, i);
        g.x += b.x, g.y += b.y, g.z += b.z, g.w += b.w;
        g = times_one_and(g, four(args.weight, i));
        *(float4 *)(row + i) = g;
        dot += dot4(g, four(args.x + at, i));
    }
    float r = args.rstd[token];
    float mean = block_sum<N>(dot) * r / width;
    dot = 0.0f;
    for (int i = part.thread * 4; i < width; i += part.threads * 4) {
        const float4 g = four(row, i), x = four(args.x + at, i);
        // Fused as written, not as the compiler sees fit: the same bits from every version of it.
        const float4 centred = make_float4(g.x - x.x * r * mean, g.y - x.y * r * mean, g.z - x.z * r * mean, g.w - x.w * r * mean);
        float4 d = times(centred, r);
        if (args.d_in != nullptr) {
            const float4 in = four(args.d_in + at, i);
            d = make_float4(__fmaf_rn(r, centred.x, in.x), __fmaf_rn(r, centred.y, in.y), __fmaf_rn(r, centred.z, in.z),
                            __fmaf_rn(r, centred.w, in.w));
        }
        put_four(args.d_out + at, i, d);
        if (args.branch.rows != nullptr) {
            d = times_one_and(d, four(args.branch.weight, i));
            *(float4 *)(row + i) = d;
            dot += dot4(d, four(args.branch.rows + at, i));
        }
    }
    if (args.branch.rows == nullptr) return;
    r = args.branch.rstd[token];
    mean = block_sum<N>(dot) * r / width;
    for (int i = part.thread * 4; i < width; i += part.threads * 4) {
        const float4 d = four(row, i), b = four(args.branch.rows + at, i);
        put_four(args.d_branch + at, i,
                 make_float4(r * (d.x - b.x * r * mean), r * (d.y - b.y * r * mean), r * (d.z - b.z * r * mean),
                             r * (d.w - b.w * r * mean)));
    }
}

// For one token a block, two, and four.
template <class T> __device__ void norm_forward(const NormForward<T> &args) { norm_forward_of<T, 1>(args); }
template <class T> __device__ void norm_forward_2(const NormForward<T> &args) { norm_forward_of<T, 2>(args); }
template <class T> __device__ void norm_forward_4(const NormForward<T> &args) { norm_forward_of<T, 4>(args); }
FOR_BOTH_TYPES_OF((512), norm_forward, NormForward)
FOR_BOTH_TYPES_OF((512), norm_forward_2, NormForward)
FOR_BOTH_TYPES_OF((512), norm_forward_4, NormForward)

template <class T> __device__ void norm_backward(const NormBackward<T> &args) { norm_backward_of<T, 1>(args); }
template <class T> __device__ void norm_backward_2(const NormBackward<T> &args) { norm_backward_of<T, 2>(args); }
template <class T> __device__ void norm_backward_4(const NormBackward<T> &args) { norm_backward_of<T, 4>(args); }
FOR_BOTH_TYPES_OF((512), norm_backward, NormBackward)
FOR_BOTH_TYPES_OF((512), norm_backward_2, NormBackward)
FOR_BOTH_TYPES_OF((512), norm_backward_4, NormBackward)

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
