// RMSNorm with what stands around it in a decoder layer, one block a token:
//   forward:  x += rms(branch) · (1 + w_post);  y = rms(x) · (1 + w);  u = dropout(y) Aᵀ
//   backward: the same in reverse, for the stream and then for the branch.
// Without a branch, without adapters, these are the plain norm and its gradient.
#include "../common.cuh"

template <class T>
__device__ void norm_forward(const float *x_in, const T *branch, const float *w_post, float *x_out, float *rstd_post,
                             const float *w, float *rstd, T *y, int ldy, Adapters adapters, const Step *step, int width,
                             float eps) {
    extern __shared__ float row[];
    uint8_t *masks = (uint8_t *)(row + width);
    const int token = blockIdx.x;
    const size_t at = (size_t)token * width;
    begin(adapters, step, token, width, masks);
    if (branch != nullptr) {
        float squares = 0.0f;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            const float b = to_f32(branch[at + i]);
            squares += b * b;
        }
        const float r = rsqrtf(block_sum(squares) / width + eps);
        if (threadIdx.x == 0) rstd_post[token] = r;
        for (int i = threadIdx.x; i < width; i += blockDim.x)
            row[i] = x_in[at + i] + to_f32(branch[at + i]) * r * (1.0f + w_post[i]);
    } else {
        for (int i = threadIdx.x; i < width; i += blockDim.x) row[i] = x_in[at + i];
    }
    float squares = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const float x = row[i];
        if (branch != nullptr) x_out[at + i] = x;
        squares += x * x;
    }
    const float r = rsqrtf(block_sum(squares) / width + eps);
    if (threadIdx.x == 0) rstd[token] = r;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        const T value = from_f32<T>(row[i] * r * (1.0f + w[i]));
        y[(size_t)token * ldy + i] = value;
        row[i] = to_f32(value);
    }
    if (adapters.count == 0) return;
    __syncthreads();
    adapters_down(adapters, row, masks, width, y + (size_t)token * ldy + width);
}

// With n = x · rstd and g = dy · (1 + w): dx = rstd · (g − n · mean(g · n)).
// `dn` [tokens, ldn] holds the gradient of y, and behind it that of u.
template <class T>
__device__ void norm_backward(const float *dn, int ldn, Adapters adapters, const Step *step, const float *x,
                              const float *w, const float *rstd, const float *dx_in, float *dx_out, const T *branch,
                              const float *w_post, const float *rstd_post, T *d_branch, int width) {
    extern __shared__ float row[];
    const int total = adapters.count * adapters.padded;
    float *back = row + width, *du = back + adapters.count * width;
    uint8_t *masks = (uint8_t *)(du + total);
    const int token = blockIdx.x;
    const size_t at = (size_t)token * width;
    begin(adapters, step, token, width, masks);
    for (int i = threadIdx.x; i < total; i += blockDim.x) du[i] = dn[(size_t)token * ldn + width + i];
    __syncthreads();
    adapters_back(adapters, du, masks, width, back);
    __syncthreads();
    float dot = 0.0f;
    for (int i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        float4 g = four(dn + (size_t)token * ldn, i);
        const float4 b = back_of(adapters, back, width, i);
        g.x += b.x, g.y += b.y, g.z += b.z, g.w += b.w;
        const float4 f = four(w, i);
        g.x *= 1.0f + f.x, g.y *= 1.0f + f.y, g.z *= 1.0f + f.z, g.w *= 1.0f + f.w;
        *(float4 *)(row + i) = g;
        dot += dot4(g, four(x + at, i));
    }
    float r = rstd[token];
    float mean = block_sum(dot) * r / width;
    dot = 0.0f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float d = r * (row[i] - x[at + i] * r * mean);
        if (dx_in != nullptr) d += dx_in[at + i];
        dx_out[at + i] = d;
        if (branch != nullptr) {
            d *= 1.0f + w_post[i];
            row[i] = d;
            dot += d * to_f32(branch[at + i]);
        }
    }
    if (branch == nullptr) return;
    r = rstd_post[token];
    mean = block_sum(dot) * r / width;
    for (int i = threadIdx.x; i < width; i += blockDim.x)
        d_branch[at + i] = from_f32<T>(r * (row[i] - to_f32(branch[at + i]) * r * mean));
}

#define PARAMS(T)                                                                                                     \
    (const float *x_in, const T *branch, const float *w_post, float *x_out, float *rstd_post, const float *w,         \
     float *rstd, T *y, int ldy, Adapters adapters, const Step *step, int width, float eps)
FOR_BOTH_TYPES(norm_forward, PARAMS,
               (x_in, branch, w_post, x_out, rstd_post, w, rstd, y, ldy, adapters, step, width, eps))
#undef PARAMS
#define PARAMS(T)                                                                                                     \
    (const float *dn, int ldn, Adapters adapters, const Step *step, const float *x, const float *w,                   \
     const float *rstd, const float *dx_in, float *dx_out, const T *branch, const float *w_post,                      \
     const float *rstd_post, T *d_branch, int width)
FOR_BOTH_TYPES(norm_backward, PARAMS,
               (dn, ldn, adapters, step, x, w, rstd, dx_in, dx_out, branch, w_post, rstd_post, d_branch, width))
#undef PARAMS
