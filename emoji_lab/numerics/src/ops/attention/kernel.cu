// Causal attention over packed sequences, with grouped key/value heads and a sliding window.
// One block a token, a few warps a query head: each walks every so many of its keys, and their
// parts are put together in shared memory. No score is ever written. A lane holds N consecutive
// dims. Blocks are (32, heads · parts) threads, part by part; at most 512 of them.
#include "arguments.cuh"

const int GROUP = 4;    // keys a warp has in flight, forward
const int MAX_WARPS = 16;

// And backward, where each needs more registers: in bf16, which takes half of them, as many.
template <class T> struct InFlight;
template <> struct InFlight<float> { static const int KEYS = 2, QUERIES = 2; };
template <> struct InFlight<bf16> { static const int KEYS = 4, QUERIES = 3; };

// N consecutive values of a row, by one lane of a warp, as they are in memory: zeros past `dim`, as `load_row`.
template <class T, int N> struct Packed;
template <int N> struct Packed<float, N> {
    float values[N];
    __device__ __forceinline__ void load(const float *x, int dim, int lane) { load_row(values, x, dim, lane); }
    __device__ __forceinline__ float operator[](int n) const { return values[n]; }
};
template <int N> struct Packed<bf16, N> {
    uint32_t words[(N + 1) / 2];
    __device__ __forceinline__ void load(const bf16 *x, int dim, int lane) {
#pragma unroll
        for (int n = 0; n < (N + 1) / 2; n++) words[n] = 0;
        if (lane * N >= dim) return;
        x += lane * N;
        if constexpr (N == 8) *(uint4 *)words = *(const uint4 *)x;
        else if constexpr (N == 4) *(uint2 *)words = *(const uint2 *)x;
        else if constexpr (N == 2) words[0] = *(const uint32_t *)x;
        else words[0] = *(const uint16_t *)x;
    }
    __device__ __forceinline__ float operator[](int n) const {
        return __uint_as_float(n % 2 == 0 ? words[n / 2] << 16 : words[n / 2] & 0xffff0000u);
    }
};
template <class T, int N> __device__ __forceinline__ float dot(const float (&a)[N], const Packed<T, N> &b) {
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < N; n++) sum += a[n] * b[n];
    return sum;
}

template <class T, int N> __device__ void attention_forward_n(const AttentionForward<T> &args) {
    const AttentionSizes &s = args.sizes;
    extern __shared__ float row[];
    __shared__ float maxima[MAX_WARPS], sums[MAX_WARPS];
    const int token = blockIdx.x, lane = threadIdx.x, width = s.heads * s.dim;
    const int head = threadIdx.y % s.heads, part = threadIdx.y / s.heads, parts = blockDim.y / s.heads;
    float *all_parts = row + width;
    uint8_t *masks = (uint8_t *)(all_parts + parts * width);
    const Adapters &l = args.adapters;
    begin(l, args.step, token, width, masks);
    wait_for_previous();
    const int kv = head / (s.heads / s.kv_heads);
    const int ldv = (s.heads + 2 * s.kv_heads) * s.dim, v_at = (s.heads + s.kv_heads + kv) * s.dim;
    float query[N], out[N], sum = 0.0f, max = -INFINITY;
    load_row(query, args.q + ((size_t)token * s.heads + head) * s.dim, s.dim, lane);
#pragma unroll
    for (int n = 0; n < N; n++) out[n] = 0.0f;
    int first = args.start[token];
    if (s.window > 0 && token - s.window + 1 > first) first = token - s.window + 1;
    for (int j = first + part * GROUP; j <= token; j += parts * GROUP) {
        float scores[GROUP], top = max;
        Packed<T, N> keys[GROUP], values[GROUP];
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            const int at = j + g <= token ? j + g : token;
            keys[g].load(args.k + ((size_t)at * s.kv_heads + kv) * s.dim, s.dim, lane);
            values[g].load(args.qkv + (size_t)at * ldv + v_at, s.dim, lane);
        }
#pragma unroll
        for (int g = 0; g < GROUP; g++) scores[g] = dot(query, keys[g]);
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            scores[g] = j + g <= token ? warp_sum(scores[g]) * s.scale : -INFINITY;
            top = fmaxf(top, scores[g]);
        }
        const float fade = expf(max - top);
        max = top;
        sum *= fade;
#pragma unroll
        for (int n = 0; n < N; n++) out[n] *= fade;
#pragma unroll
        for (int g = 0; g < GROUP; g++) {
            const float p = expf(scores[g] - max);
            sum += p;
#pragma unroll
            for (int n = 0; n < N; n++) out[n] += p * values[g][n];
        }
    }
    if (lane == 0) maxima[threadIdx.y] = max, sums[threadIdx.y] = sum;
#pragma unroll
    for (int n = 0; n < N; n++)
        if (lane * N + n < s.dim) all_parts[threadIdx.y * s.dim + lane * N + n] = out[n];
    __syncthreads();
    // The first part has the first key, so its maximum is a number; a part without keys weighs nothing.
    const int thread = threadIdx.y * 32 + lane;
    for (int i = thread; i < width; i += blockDim.y * 32) {
        const int of = i / s.dim;
        float top = maxima[of], total = 0.0f, value = 0.0f;
        for (int p = 1; p < parts; p++) top = fmaxf(top, maxima[p * s.heads + of]);
        for (int p = 0; p < parts; p++) {
            const float weight = expf(maxima[p * s.heads + of] - top);
            total += weight * sums[p * s.heads + of];
            value += weight * all_parts[p * width + i];
        }
        if (i % s.dim == 0) args.lse[(size_t)token * s.heads + of] = top + logf(total);
        const T rounded = from_f32<T>(value / total);
        args.y[(size_t)token * args.ldy + i] = rounded;
        row[i] = to_f32(rounded);
    }
    if (l.count == 0) return;
    __syncthreads();
    adapters_down(l, row, masks, width, args.y + (size_t)token * args.ldy + width, args.ldy);
}

template <class T> __device__ void attention_forward(const AttentionForward<T> &args) {
    if (args.sizes.dim <= 32) attention_forward_n<T, 1>(args);
    else if (args.sizes.dim <= 64) attention_forward_n<T, 2>(args);
    else if (args.sizes.dim <= 128) attention_forward_n<T, 4>(args);
    else attention_forward_n<T, 8>(args);
}

// Completes the gradient of the output in place, and delta = Σ d_y · y of every head.
template <class T> __device__ void attention_delta(const AttentionDelta<T> &args) {
    const AttentionSizes &s = args.sizes;
    extern __shared__ float back[];
    __shared__ float sums[MAX_WARPS];
    const int token = blockIdx.x, lane = threadIdx.x, width = s.heads * s.dim;
    const int head = threadIdx.y % s.heads, part = threadIdx.y / s.heads, parts = blockDim.y / s.heads;
    const Adapters &l = args.adapters;
    float *du = back + l.count * width;
    const int total = l.count * l.padded, thread = threadIdx.y * 32 + lane;
    uint8_t *masks = (uint8_t *)(du + total);
    begin(l, args.step, token, width, masks);
    wait_for_previous();
    // The first four values of a head that this lane has are on their way before what comes through the adapter is made.
    const int begins = head * s.dim + part * 128 + lane * 4, ends = (head + 1) * s.dim;
    float *d_y = args.d_y + (size_t)token * args.ldy;
    const T *y = args.y + (size_t)token * args.ldy;
    float4 d, out;
    if (begins < ends) d = four(d_y, begins), out = four(y, begins);
    for (int i = thread; i < total; i += blockDim.y * 32) du[i] = d_y[width + i];
    __syncthreads();
    adapters_back(l, du, masks, width, back);
    __syncthreads();
    float sum = 0.0f;
    for (int i = begins; i < ends; i += parts * 128) {
        if (i != begins) d = four(d_y, i), out = four(y, i);
        const float4 b = back_of(l, back, width, i);
        d.x += b.x, d.y += b.y, d.z += b.z, d.w += b.w;
        *(float4 *)(d_y + i) = d;
        sum += dot4(d, out);
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[threadIdx.y] = sum;
    __syncthreads();
    if (lane != 0 || part != 0) return;
    for (int p = 1; p < parts; p++) sum += sums[p * s.heads + head];
    args.delta[(size_t)token * s.heads + head] = sum;
}

template <class T, int N> __device__ void attention_backward_n(const AttentionBackward<T> &args) {
    const AttentionSizes &s = args.sizes;
    extern __shared__ float rows[];
    const int token = blockIdx.x, lane = threadIdx.x, width = s.heads * s.dim;
    const int head = threadIdx.y % s.heads, part = threadIdx.y / s.heads, parts = blockDim.y / s.heads;
    const int thread = threadIdx.y * 32 + lane, threads = blockDim.y * 32;
    const int group = s.heads / s.kv_heads, kv = head / group;
    let_next_begin();
    wait_for_previous();
    const int ldv = (s.heads + 2 * s.kv_heads) * s.dim, v_at = (s.heads + s.kv_heads + kv) * s.dim;
    const size_t angle = (size_t)args.positions[token] * (s.dim / 2);
    const float *rstd = args.rstd + (size_t)token * (s.heads + s.kv_heads);
    if (blockIdx.y == 0) {
        // The query's gradient.
        const int KEYS = InFlight<T>::KEYS;
        float query[N], d_out[N], d_query[N];
        const size_t at = (size_t)token * s.heads + head;
        load_row(query, args.q + at * s.dim, s.dim, lane);
        load_row(d_out, args.d_y + (size_t)token * args.ldy + head * s.dim, s.dim, lane);
#pragma unroll
        for (int n = 0; n < N; n++) d_query[n] = 0.0f;
        int first = args.start[token];
        if (s.window > 0 && token - s.window + 1 > first) first = token - s.window + 1;
        const float my_lse = args.lse[at], my_delta = args.delta[at];
        for (int j = first + part * KEYS; j <= token; j += parts * KEYS) {
            Packed<T, N> key[KEYS], value[KEYS];
            float scores[KEYS], dp[KEYS];
#pragma unroll
            for (int g = 0; g < KEYS; g++) {
                const int from = j + g <= token ? j + g : token;
                key[g].load(args.k + ((size_t)from * s.kv_heads + kv) * s.dim, s.dim, lane);
                value[g].load(args.qkv + (size_t)from * ldv + v_at, s.dim, lane);
            }
#pragma unroll
            for (int g = 0; g < KEYS; g++) scores[g] = dot(query, key[g]), dp[g] = dot(d_out, value[g]);
#pragma unroll
            for (int g = 0; g < KEYS; g++) scores[g] = warp_sum(scores[g]), dp[g] = warp_sum(dp[g]);
#pragma unroll
            for (int g = 0; g < KEYS; g++) {
                float ds = expf(scores[g] * s.scale - my_lse) * (dp[g] - my_delta) * s.scale;
                if (j + g > token) ds = 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++) d_query[n] += ds * key[g][n];
            }
        }
        float *mine = rows + threadIdx.y * s.dim;
#pragma unroll
        for (int n = 0; n < N; n++)
            if (lane * N + n < s.dim) mine[lane * N + n] = d_query[n];
        __syncthreads();
        for (int i = thread; i < width; i += threads) {
            float sum = rows[i];
            for (int p = 1; p < parts; p++) sum += rows[p * width + i];
            rows[i] = sum;
        }
        __syncthreads();
        if (part != 0) return;
        float *row = rows + head * s.dim;
        norm_rope_backward(row, args.qkv + (size_t)token * ldv + head * s.dim, args.weight_q, rstd[head], args.cos + angle,
                           args.sin + angle, args.d_qkv + (size_t)token * ldv + head * s.dim,
                           args.terms_q == nullptr ? nullptr : args.terms_q + at * s.dim, s.dim, lane);
        return;
    }
    // The key's and the value's: every head of the group separately, then the sum of heads and parts.
    const int QUERIES = InFlight<T>::QUERIES;
    float key[N], value[N], d_key[N], d_value[N];
    load_row(key, args.k + ((size_t)token * s.kv_heads + kv) * s.dim, s.dim, lane);
    load_row(value, args.qkv + (size_t)token * ldv + v_at, s.dim, lane);
#pragma unroll
    for (int n = 0; n < N; n++) d_key[n] = 0.0f, d_value[n] = 0.0f;
    int last = args.end[token];
    if (s.window > 0 && token + s.window < last) last = token + s.window;
    for (int i = token + part * QUERIES; i < last; i += parts * QUERIES) {
        Packed<T, N> query[QUERIES];
        float d_out[QUERIES][N], scores[QUERIES], dp[QUERIES], lses[QUERIES], deltas[QUERIES];
#pragma unroll
        for (int g = 0; g < QUERIES; g++) {
            const int from = i + g < last ? i + g : last - 1;
            const size_t at = (size_t)from * s.heads + head;
            query[g].load(args.q + at * s.dim, s.dim, lane);
            load_row(d_out[g], args.d_y + (size_t)from * args.ldy + head * s.dim, s.dim, lane);
            lses[g] = args.lse[at], deltas[g] = args.delta[at];
        }
#pragma unroll
        for (int g = 0; g < QUERIES; g++) scores[g] = dot(key, query[g]), dp[g] = dot(d_out[g], value);
#pragma unroll
        for (int g = 0; g < QUERIES; g++) scores[g] = warp_sum(scores[g]), dp[g] = warp_sum(dp[g]);
#pragma unroll
        for (int g = 0; g < QUERIES; g++) {
            const float p = i + g < last ? expf(scores[g] * s.scale - lses[g]) : 0.0f;
            const float ds = p * (dp[g] - deltas[g]) * s.scale;
#pragma unroll
            for (int n = 0; n < N; n++) d_key[n] += ds * query[g][n], d_value[n] += p * d_out[g][n];
        }
    }
    float *key_row = rows + threadIdx.y * s.dim, *value_row = rows + (blockDim.y + threadIdx.y) * s.dim;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int i = lane * N + n;
        if (i < s.dim) key_row[i] = d_key[n], value_row[i] = d_value[n];
    }
    __syncthreads();
    // The sum for key/value head h stays where its group's first head had its own: only there is it written.
    for (int i = thread; i < 2 * s.kv_heads * s.dim; i += threads) {
        const bool of_value = i >= s.kv_heads * s.dim;
        const int column = of_value ? i - s.kv_heads * s.dim : i;
        const int h = column / s.dim, at = h * group * s.dim + column % s.dim;
        float *from = rows + (of_value ? parts * width : 0), sum = 0.0f;
        for (int p = 0; p < parts; p++)
            for (int g = 0; g < group; g++) sum += from[p * width + at + g * s.dim];
        if (of_value) args.d_qkv[(size_t)token * ldv + (s.heads + s.kv_heads) * s.dim + column] = from_f32<T>(sum);
        else from[at] = sum;
    }
    __syncthreads();
    if (part != 0 || head % group != 0) return;
    key_row = rows + head * s.dim;
    const int k_at = (s.heads + kv) * s.dim;
    norm_rope_backward(key_row, args.qkv + (size_t)token * ldv + k_at, args.weight_k, rstd[s.heads + kv], args.cos + angle,
                       args.sin + angle, args.d_qkv + (size_t)token * ldv + k_at,
                       args.terms_k == nullptr ? nullptr : args.terms_k + ((size_t)token * s.kv_heads + kv) * s.dim, s.dim,
                       lane);
}

// The gradients of q, k and v before norm and rotation, into `d_qkv` (shape of `qkv`). The grid is
// [tokens, 2]: one half of the blocks takes queries, the other keys and values.
template <class T> __device__ void attention_backward(const AttentionBackward<T> &args) {
    if (args.sizes.dim <= 32) attention_backward_n<T, 1>(args);
    else if (args.sizes.dim <= 64) attention_backward_n<T, 2>(args);
    else if (args.sizes.dim <= 128) attention_backward_n<T, 4>(args);
    else attention_backward_n<T, 8>(args);
}

FOR_BOTH_TYPES_OF((512), attention_forward, AttentionForward)
FOR_BOTH_TYPES_OF((512), attention_delta, AttentionDelta)
FOR_BOTH_TYPES_OF((512), attention_backward, AttentionBackward)
