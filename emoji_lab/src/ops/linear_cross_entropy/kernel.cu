// Loss and its gradient over rows of logits, in place; the products with the head are cuBLAS'.
#include "../common.cuh"

template <class T> struct CrossEntropy {
    T *logits;             // [rows, vocab]
    const int *targets;    // [rows]
    float *losses;         // [rows]
    const Step *step;
    int vocab;
    int gradient;          // whether the logits become their gradients
};
MIRRORED(CrossEntropy<float>, 40,
         AT(logits, 0) AT(targets, 8) AT(losses, 16) AT(step, 24) AT(vocab, 32) AT(gradient, 36))

// One block a row of `logits`: losses[row] = log Σ exp − logit of the target, and
// with `gradient` the row becomes (softmax − one-hot) · loss_factor. Rows whose target is negative
// take no part: no loss, no gradient.
template <class T> __device__ void cross_entropy(const CrossEntropy<T> &args) {
    T *row = args.logits + (size_t)blockIdx.x * args.vocab;
    const int target = args.targets[blockIdx.x];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int per = 16 / sizeof(T), vectors = args.vocab / per;    // a row is a multiple of 16 bytes
    uint4 *wide = (uint4 *)row;
    if (target < 0) {
        if (threadIdx.x == 0) args.losses[blockIdx.x] = 0.0f;
        if (args.gradient)
            for (int i = threadIdx.x; i < vectors; i += blockDim.x) wide[i] = make_uint4(0, 0, 0, 0);
        return;
    }
    float max = -INFINITY, sum = 0.0f;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
        const uint4 word = wide[i];
        const T *v = (const T *)&word;
        float top = max;
#pragma unroll
        for (int n = 0; n < per; n++) top = fmaxf(top, to_f32(v[n]));
        sum *= expf(max - top);
        max = top;
#pragma unroll
        for (int n = 0; n < per; n++) sum += expf(to_f32(v[n]) - max);
    }
    __shared__ float maxima[32], sums[32];
    for (int offset = 16; offset > 0; offset >>= 1) {
        const float other_max = __shfl_xor_sync(0xffffffffu, max, offset);
        const float other_sum = __shfl_xor_sync(0xffffffffu, sum, offset);
        const float top = fmaxf(max, other_max);
        // A thread that saw no element has −∞ and 0: −∞ − −∞ would be NaN.
        sum = (max == -INFINITY ? 0.0f : sum * expf(max - top)) + (other_max == -INFINITY ? 0.0f : other_sum * expf(other_max - top));
        max = top;
    }
    if (lane == 0) maxima[warp] = max, sums[warp] = sum;
    __syncthreads();
    max = -INFINITY;
    for (int w = 0; w < warps; w++) max = fmaxf(max, maxima[w]);
    sum = 0.0f;
    for (int w = 0; w < warps; w++)
        if (maxima[w] != -INFINITY) sum += sums[w] * expf(maxima[w] - max);
    const float lse = max + logf(sum);
    if (threadIdx.x == 0) args.losses[blockIdx.x] = lse - to_f32(row[target]);
    if (!args.gradient) return;
    __syncthreads();    // the target's logit is read before it is overwritten
    const float factor = args.step->loss_factor;
    for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
        uint4 word = wide[i];
        T *v = (T *)&word;
#pragma unroll
        for (int n = 0; n < per; n++) {
            const float p = expf(to_f32(v[n]) - lse) - (i * per + n == target ? 1.0f : 0.0f);
            v[n] = from_f32<T>(p * factor);
        }
        wide[i] = word;
    }
}

FOR_BOTH_TYPES(cross_entropy, CrossEntropy)

struct SumLosses {
    const float *losses;    // [rows]
    double *total;          // one
    const Step *step;
    int rows;
};
MIRRORED(SumLosses, 32, AT(losses, 0) AT(total, 8) AT(step, 16) AT(rows, 24))

// Adds a micro-batch's losses to the optimizer step's. One block.
extern "C" __global__ void sum_losses(const __grid_constant__ SumLosses args) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < args.rows; i += blockDim.x) sum += args.losses[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *args.total = args.step->first_micro ? sum : *args.total + sum;
}

// Some columns of rows of logits' gradients, next to each other: those of the head's rows that are trained.
template <class T> struct TakeColumns {
    const T *logits;    // [rows, vocab]
    const int *ids;     // [count]
    T *columns;         // [rows, ld]
    int vocab, count, ld;
};
MIRRORED(TakeColumns<float>, 40, AT(logits, 0) AT(ids, 8) AT(columns, 16) AT(vocab, 24) AT(count, 28) AT(ld, 32))

// A block per row.
template <class T> __device__ void take_columns(const TakeColumns<T> &args) {
    const T *from = args.logits + (size_t)blockIdx.x * args.vocab;
    T *to = args.columns + (size_t)blockIdx.x * args.ld;
    for (int i = threadIdx.x; i < args.count; i += blockDim.x) to[i] = from[args.ids[i]];
}

FOR_BOTH_TYPES(take_columns, TakeColumns)
