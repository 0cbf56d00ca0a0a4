// The norm of all gradients, in two steps of fixed order.
#include "../common.cuh"

template <class T> __device__ __forceinline__ float squares_of_one(T g) { return to_f32(g) * to_f32(g); }

template <class T> __device__ __forceinline__ float squares_of_eight(const T *g) {
    float v[8], sum = 0.0f;
    load_eight(v, g);
#pragma unroll
    for (int n = 0; n < 8; n++) sum += v[n] * v[n];
    return sum;
}

template <class T> struct SumOfSquares {
    const T *products;      // [products_len]: gradients of what products read
    size_t products_len;
    const float *others;    // [len]: all other gradients
    size_t len;
    double *partials;       // [blocks]
};
MIRRORED(SumOfSquares<float>, 40, AT(products, 0) AT(products_len, 8) AT(others, 16) AT(len, 24) AT(partials, 32))

template <class T> __device__ void sum_of_squares(const SumOfSquares<T> &args) {
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, threads = (size_t)gridDim.x * blockDim.x;
    double total = 0.0;
    // f32 within eight values, f64 across them: nothing is lost, and f64 is one addition in eight.
#pragma unroll 4
    for (size_t i = thread * 8; i + 7 < args.products_len; i += threads * 8) total += squares_of_eight(args.products + i);
#pragma unroll 4
    for (size_t i = thread * 8; i + 7 < args.len; i += threads * 8) total += squares_of_eight(args.others + i);
    if (thread < args.products_len % 8) total += squares_of_one(args.products[args.products_len - 1 - thread]);
    if (thread < args.len % 8) total += squares_of_one(args.others[args.len - 1 - thread]);
    total = block_sum(total);
    if (threadIdx.x == 0) args.partials[blockIdx.x] = total;
}

FOR_BOTH_TYPES(sum_of_squares, SumOfSquares)

struct FinishNorm {
    const double *partials;    // [count]
    const double *loss;        // one
    const Step *step;
    StepResult *result;
    int count;
};
MIRRORED(FinishNorm, 40, AT(partials, 0) AT(loss, 8) AT(step, 16) AT(result, 24) AT(count, 32))

// One block: the norm, the factor of clipping, and whether the step may be taken at all.
extern "C" __global__ void finish_norm(const __grid_constant__ FinishNorm args) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < args.count; i += blockDim.x) sum += args.partials[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    // Of a gradient that is nearly zero the parts may cancel to less; NaN stays.
    const double norm = sqrt(sum < 0.0 ? 0.0 : sum);
    const double scale = args.step->max_grad_norm > 0.0f ? fmin(args.step->max_grad_norm / (norm + 1e-6), 1.0) : 1.0;
    args.result->loss = *args.loss;
    args.result->grad_norm = norm;
    args.result->finite = isfinite(norm) && isfinite(*args.loss);
    args.result->gradient_scale = args.result->finite ? (float)scale : 0.0f;
}

struct Range {
    uint64_t first, len;
};
MIRRORED(Range, 16, AT(first, 0) AT(len, 8))

template <class T> struct SquaresByRange {
    const T *gradients;
    const Range *ranges;    // [ranges]
    double *partials;       // [ranges, parts]
};
MIRRORED(SquaresByRange<float>, 24, AT(gradients, 0) AT(ranges, 8) AT(partials, 16))

// Grid [parts, ranges]: sums of squares of each range, in parts.
template <class T> __device__ void squares_by_range(const SquaresByRange<T> &args) {
    const Range range = args.ranges[blockIdx.y];
    double sum = 0.0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < range.len; i += (size_t)gridDim.x * blockDim.x) {
        const double v = to_f32(args.gradients[range.first + i]);
        sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) args.partials[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

FOR_BOTH_TYPES(squares_by_range, SquaresByRange)
