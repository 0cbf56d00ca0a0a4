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

// A pair of numbers in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ float2 in_block(const float2 *own, int rank) {
    float2 v = make_float2(0.0f, 0.0f);
#if __CUDA_ARCH__ >= 900
    uint32_t at;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(in_shared(own)), "r"(rank));
    asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at) : "memory");
#endif
    return v;
}
__device__ __forceinline__ void arrive_in_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_in_cluster() {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// 2^x, off by two units in the last of 22 bits.
__device__ __forceinline__ float near_exp2(float x) {
    float v;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
    return v;
}

const int ROW_BLOCKS = 8;
const float LOG2_E = 1.4426950408889634f;

// The same for rows that eight blocks have room for in shared memory: a row is read once, and its gradient made of what
// was kept. Grid [8 · rows], 512 threads, shared memory for an eighth of a row: several blocks share a multiprocessor,
// and one reads while another one computes.
template <class T> __device__ void cross_entropy_kept(const CrossEntropy<T> &args) {
    extern __shared__ uint4 kept_words[];
    __shared__ float2 of_warps[32], of_block;    // a maximum, and the sum of 2^(x · log₂ e − it)
    const int number = blockIdx.x / ROW_BLOCKS, rank = blockIdx.x % ROW_BLOCKS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const int target = args.targets[number], per = 16 / sizeof(T), vectors = args.vocab / per;
    const int share = (vectors + ROW_BLOCKS - 1) / ROW_BLOCKS, first = rank * share;
    const int count = vectors - first < share ? (vectors > first ? vectors - first : 0) : share;
    uint4 *wide = (uint4 *)(args.logits + (size_t)number * args.vocab) + first;
    if (target < 0) {
        if (rank == 0 && threadIdx.x == 0) args.losses[number] = 0.0f;
        if (args.gradient)
            for (int i = threadIdx.x; i < count; i += blockDim.x) wide[i] = make_uint4(0, 0, 0, 0);
        return;
    }
    float max = -INFINITY, sum = 0.0f;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const uint4 word = wide[i];
        kept_words[i] = word;
        const T *v = (const T *)&word;
        float top = max;
#pragma unroll
        for (int n = 0; n < per; n++) top = fmaxf(top, to_f32(v[n]) * LOG2_E);
        sum *= near_exp2(max - top);
        max = top;
#pragma unroll
        for (int n = 0; n < per; n++) sum += near_exp2(to_f32(v[n]) * LOG2_E - max);
    }
    // Who saw no element has −∞ and 0: −∞ − −∞ would be NaN.
    const auto join = [&](float other_max, float other_sum) {
        const float top = fmaxf(max, other_max);
        sum = (max == -INFINITY ? 0.0f : sum * near_exp2(max - top)) + (other_max == -INFINITY ? 0.0f : other_sum * near_exp2(other_max - top));
        max = top;
    };
    for (int offset = 16; offset > 0; offset >>= 1)
        join(__shfl_xor_sync(0xffffffffu, max, offset), __shfl_xor_sync(0xffffffffu, sum, offset));
    if (lane == 0) of_warps[warp] = make_float2(max, sum);
    __syncthreads();
    max = -INFINITY, sum = 0.0f;
    for (int w = 0; w < warps; w++) join(of_warps[w].x, of_warps[w].y);
    if (threadIdx.x == 0) of_block = make_float2(max, sum);
    arrive_in_cluster();
    wait_in_cluster();
    max = -INFINITY, sum = 0.0f;
    for (int other = 0; other < ROW_BLOCKS; other++) {
        const float2 v = in_block(&of_block, other);
        join(v.x, v.y);
    }
    // A block's shared memory is there until all have read it.
    arrive_in_cluster();
    const float lse = max + log2f(sum), factor = args.step->loss_factor;    // both of base 2
    const int place = target - first * per;
    const bool mine = place >= 0 && place < count * per;
    if (mine && threadIdx.x == 0) args.losses[number] = (lse - to_f32(((const T *)kept_words)[place]) * LOG2_E) / LOG2_E;
    if (args.gradient)
#pragma unroll 2
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            uint4 word = kept_words[i];
            T *v = (T *)&word;
            const int at = mine && place / per == i ? place % per : per;
#pragma unroll
            for (int n = 0; n < per; n++)
                v[n] = from_f32<T>((near_exp2(to_f32(v[n]) * LOG2_E - lse) - (n == at ? 1.0f : 0.0f)) * factor);
            wide[i] = word;
        }
    wait_in_cluster();
}

FOR_BF16_IN_CLUSTERS_OF(8, (512, 3), cross_entropy_kept, CrossEntropy)

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
