// The norm of all gradients, in two steps of fixed order.
#include "../common.cuh"

template <class T> __device__ __forceinline__ float squares_of_one(T g) { return to_f32(g) * to_f32(g); }

template <class T> __device__ __forceinline__ float squares_of_eight(const T *g) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < 8; n++) {
        const float v = to_f32(g[n]);
        sum += v * v;
    }
    return sum;
}

// The head's gradients [head_n], in the compute type, and the other ones [n], f32.
template <class T>
__device__ void sum_of_squares(const T *head, size_t head_n, const float *g, size_t n, double *partials) {
    const size_t thread = (size_t)blockIdx.x * blockDim.x + threadIdx.x, threads = (size_t)gridDim.x * blockDim.x;
    double total = 0.0;
    // f32 within eight values, f64 across them: nothing is lost, and f64 is one addition in eight.
    for (size_t i = thread * 8; i + 7 < head_n; i += threads * 8) total += squares_of_eight(head + i);
    for (size_t i = thread * 8; i + 7 < n; i += threads * 8) total += squares_of_eight(g + i);
    if (thread < head_n % 8) total += squares_of_one(head[head_n - 1 - thread]);
    if (thread < n % 8) total += squares_of_one(g[n - 1 - thread]);
    total = block_sum(total);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

#define PARAMS(T) (const T *head, size_t head_n, const float *g, size_t n, double *partials)
FOR_BOTH_TYPES(sum_of_squares, PARAMS, (head, head_n, g, n, partials))
#undef PARAMS

// One block: the norm, the factor of clipping, and whether the step may be taken at all.
extern "C" __global__ void finish_norm(const double *partials, int count, const double *loss, const Step *step,
                                       StepResult *result) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum);
    const double scale = step->max_grad_norm > 0.0f ? fmin(step->max_grad_norm / (norm + 1e-6), 1.0) : 1.0;
    result->loss = *loss;
    result->grad_norm = norm;
    result->finite = isfinite(norm) && isfinite(*loss);
    result->gradient_scale = result->finite ? (float)scale : 0.0f;
}

// Grid [parts, ranges]: sums of squares of each range (first, length), in parts.
template <class T> __device__ void squares_by_range(const T *g, const ulonglong2 *ranges, double *partials) {
    const ulonglong2 range = ranges[blockIdx.y];
    double sum = 0.0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < range.y; i += (size_t)gridDim.x * blockDim.x) {
        const double v = to_f32(g[range.x + i]);
        sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

#define PARAMS(T) (const T *g, const ulonglong2 *ranges, double *partials)
FOR_BOTH_TYPES(squares_by_range, PARAMS, (g, ranges, partials))
#undef PARAMS
