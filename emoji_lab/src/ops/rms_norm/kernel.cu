// RMSNorm with what stands around it in a decoder layer, one block a token:
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

template <class T> __device__ void norm_forward(const NormForward<T> &args) {
    extern __shared__ float row[];
    const int token = blockIdx.x, width = args.width;
    uint8_t *masks = (uint8_t *)(row + width);
    const size_t at = (size_t)token * width;
    begin(args.adapters, args.step, token, width, masks);
    if (args.branch.rows != nullptr) {
        float squares = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            const float b = to_f32(args.branch.rows[at + i]);
            squares += b * b;
        }
        const float r = rsqrtf(block_sum(squares) / width + args.eps);
        if (threadIdx.x == 0) args.branch.rstd[token] = r;
        for (int i = threadIdx.x; i < width; i += blockDim.x)
            row[i] = args.x[at + i] + to_f32(args.branch.rows[at + i]) * r * (1.0f + args.branch.weight[i]);
    } else {
        for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = args.x[at + i];
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = row[i];
        if (args.branch.rows != nullptr) args.stream[at + i] = x;
        squares += x * x;
    }
    const float r = rsqrtf(block_sum(squares) / width + args.eps);
    if (threadIdx.x == 0) args.rstd[token] = r;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const T value = from_f32<T>(row[i] * r * (1.0f + args.weight[i]));
        args.y[(size_t)token * args.ldy + i] = value;
        row[i] = to_f32(value);
    }
    if (args.adapters.count == 0) return;
    __syncthreads();
    adapters_down(args.adapters, row, masks, width, args.y + (size_t)token * args.ldy + width);
}

// With n = x · rstd and g = dy · (1 + w): dx = rstd · (g − n · mean(g · n)).
template <class T> __device__ void norm_backward(const NormBackward<T> &args) {
    extern __shared__ float row[];
    const int token = blockIdx.x, width = args.width;
    const int total = args.adapters.count * args.adapters.padded;
    float *back = row + width, *du = back + args.adapters.count * width;
    uint8_t *masks = (uint8_t *)(du + total);
    const size_t at = (size_t)token * width;
    begin(args.adapters, args.step, token, width, masks);
    for (int i = threadIdx.x; i < total; i += blockDim.x) du[i] = args.dy[(size_t)token * args.ldy + width + i];
    __syncthreads();
    adapters_back(args.adapters, du, masks, width, back);
    __syncthreads();
    float dot = 0.0f;
    for (int i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        float4 g = four(args.dy + (size_t)token * args.ldy, i);
        const float4 b = back_of(args.adapters, back, width, i);
        g.x += b.x, g.y += b.y, g.z += b.z, g.w += b.w;
        const float4 f = four(args.weight, i);
        g.x *= 1.0f + f.x, g.y *= 1.0f + f.y, g.z *= 1.0f + f.z, g.w *= 1.0f + f.w;
        *(float4 *)(row + i) = g;
        dot += dot4(g, four(args.x + at, i));
    }
    float r = args.rstd[token];
    float mean = block_sum(dot) * r / width;
    dot = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        // Fused as written, not as the compiler sees fit: the same bits from every version of it.
        const float centred = row[i] - args.x[at + i] * r * mean;
        float d = args.d_in != nullptr ? __fmaf_rn(r, centred, args.d_in[at + i]) : r * centred;
        args.d_out[at + i] = d;
        if (args.branch.rows != nullptr) {
            d *= 1.0f + args.branch.weight[i];
            row[i] = d;
            dot += d * to_f32(args.branch.rows[at + i]);
        }
    }
    if (args.branch.rows == nullptr) return;
    r = args.branch.rstd[token];
    mean = block_sum(dot) * r / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        args.d_branch[at + i] = from_f32<T>(r * (row[i] - to_f32(args.branch.rows[at + i]) * r * mean));
}

FOR_BOTH_TYPES_OF((512), norm_forward, NormForward)
FOR_BOTH_TYPES(norm_backward, NormBackward)

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
