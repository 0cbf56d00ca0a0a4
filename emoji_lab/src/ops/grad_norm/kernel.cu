// The norm of all gradients, in two steps of fixed order.
#include "../common.cuh"

extern "C" __global__ void sum_of_squares(const float *g, size_t n, double *partials) {
    float sum = 0.0f;
    double total = 0.0;
    const size_t stride = (size_t)gridDim.x * blockDim.x * 4;
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    for (int k = 0; i + 3 < n; i += stride) {
        const float4 v = *(const float4 *)(g + i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        if (++k == 16) total += sum, sum = 0.0f, k = 0;    // f32 for speed, f64 before it rounds
    }
    for (; i < n; i++) sum += g[i] * g[i];    // the last, odd ones: one thread has them
    total = block_sum(total + sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = total;
}

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

// Grid [parts, slots]: sums of squares of each range (first, length) of the gradients, in parts.
extern "C" __global__ void squares_by_slot(const float *g, const ulonglong2 *ranges, double *partials) {
    const ulonglong2 range = ranges[blockIdx.y];
    double sum = 0.0;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < range.y; i += (size_t)gridDim.x * blockDim.x) {
        const double v = g[range.x + i];
        sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}
