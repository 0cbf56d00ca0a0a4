// Causal attention in bf16 on tensor cores, for many tokens: a block has sixteen of them and all query heads of one
// key/value head, so that keys and values are read once for all of these. Scores, their gradients and the output's
// gradient are rounded to bf16 where they are factors, as in Dao 2023 (arXiv:2307.08691); sums are f32.
//
// Heads have 256 values. A block has sixteen warps: some per head, each with a part of the head's columns.
// Tokens come in whole tiles.
#include "../mma.cuh"
#include "arguments.cuh"

const int TILE_TOKENS = 16, TILE_KEYS = 32, TILE_DIM = 256, TILE_WARPS = 16;
const int TILE_ROW = TILE_DIM + 8;      // of bf16 in shared memory: eight rows begin in eight different banks
const int TILE_SUMS = TILE_DIM + 4;     // of f32

// Rows `first` to `last` of `from`, 256 values each, `ld` apart, into shared memory; zeros for rows after `last`.
__device__ __forceinline__ void copy_rows(bf16 *to, const bf16 *from, size_t ld, int first, int rows, int last) {
    for (int i = threadIdx.x; i < rows * (TILE_DIM / 8); i += TILE_WARPS * 32) {
        const int row = i / (TILE_DIM / 8), c = i % (TILE_DIM / 8) * 8;
        const bool there = first + row <= last;
        copy_16(to + row * TILE_ROW + c, from + (size_t)(there ? first + row : last) * ld + c, there);
    }
}

// The queries of a tile, head after head.
template <int GROUP>
__device__ __forceinline__ void copy_queries(bf16 *to, const bf16 *q, const AttentionSizes &s, int first, int head) {
    for (int h = 0; h < GROUP; h++)
        copy_rows(to + h * TILE_TOKENS * TILE_ROW, q + (head + h) * TILE_DIM, (size_t)s.heads * TILE_DIM, first, TILE_TOKENS, first + TILE_TOKENS - 1);
}

// The output's gradients of a tile, head after head, rounded, and of every row of these the product with the output:
// with what is rounded, so that a token that sees itself alone has a gradient of zero. A warp takes a row.
template <int GROUP>
__device__ __forceinline__ void round_gradients(bf16 *to, float *delta, const AttentionBackward<bf16> &args, int first, int head) {
#pragma unroll
    for (int i = threadIdx.x; i < GROUP * TILE_TOKENS * (TILE_DIM / 8); i += TILE_WARPS * 32) {
        const int row = i / (TILE_DIM / 8), c = i % (TILE_DIM / 8) * 8;
        const size_t at = (size_t)(first + row % TILE_TOKENS) * args.ldy + (head + row / TILE_TOKENS) * TILE_DIM + c;
        float d[8], y[8], sum = 0.0f;
        load_eight(d, args.d_y + at);
        load_eight(y, args.y + at);
        const uint32_t words[4] = {pack(d[0], d[1]), pack(d[2], d[3]), pack(d[4], d[5]), pack(d[6], d[7])};
        *(uint4 *)(to + row * TILE_ROW + c) = make_uint4(words[0], words[1], words[2], words[3]);
#pragma unroll
        for (int n = 0; n < 4; n++)
            sum += __uint_as_float(words[n] << 16) * y[2 * n] + __uint_as_float(words[n] & 0xffff0000u) * y[2 * n + 1];
        sum = warp_sum(sum);
        if (c == 0) delta[row] = sum;
    }
}

// Fragments of rows in shared memory: as the left factor [16, 16], as the right one of a product with their transpose
// (two of 8 columns), and as the right one as they are (two of 8 columns).
__device__ __forceinline__ void as_left(uint32_t (&a)[4], const bf16 *rows, int column, int lane) {
    load_matrices(a, rows + (lane & 15) * TILE_ROW + column + lane / 16 * 8);
}
__device__ __forceinline__ void as_right_transposed(uint32_t (&b)[4], const bf16 *rows, int column, int lane) {
    load_matrices(b, rows + (lane / 16 * 8 + (lane & 7)) * TILE_ROW + column + lane / 8 % 2 * 8);
}
__device__ __forceinline__ void as_right(uint32_t (&b)[4], const bf16 *rows, int column, int lane) {
    load_transposed(b, rows + (lane & 15) * TILE_ROW + column + lane / 16 * 8);
}

// Two tiles of eight columns of a product as the left factor of the next.
__device__ __forceinline__ void rounded_left(uint32_t (&a)[4], const float (&one)[4], const float (&two)[4]) {
    a[0] = pack(one[0], one[1]), a[1] = pack(one[2], one[3]), a[2] = pack(two[0], two[1]), a[3] = pack(two[2], two[3]);
}

// sums += left · rows, of the columns from `column` on.
template <int COLUMNS>
__device__ __forceinline__ void add_product(float (&sums)[COLUMNS / 8][4], const uint32_t (&left)[4], const bf16 *rows, int column, int lane) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
        uint32_t b[4];
        as_right(b, rows, column + n * 16, lane);
        mma(sums[2 * n], left, b[0], b[1]);
        mma(sums[2 * n + 1], left, b[2], b[3]);
    }
}

// The first key that a token sees, and the place after the last query that sees a key.
__device__ __forceinline__ int first_key(const int *start, int window, int token) {
    const int first = start[token];
    return window > 0 && token - window + 1 > first ? token - window + 1 : first;
}
__device__ __forceinline__ int end_of_queries(const int *end, int window, int key) {
    const int last = end[key];
    return window > 0 && key + window < last ? key + window : last;
}

// Grid [tokens / 16, kv_heads], 512 threads. The adapters have a launch of their own.
template <int GROUP> __device__ void attention_tiles(const AttentionForward<bf16> &args) {
    const int PARTS = TILE_WARPS / GROUP, COLUMNS = TILE_DIM / PARTS;
    extern __shared__ __align__(16) bf16 tiles[];
    bf16 *queries = tiles, *keys = queries + GROUP * TILE_TOKENS * TILE_ROW, *values = keys + TILE_KEYS * TILE_ROW;
    const AttentionSizes &s = args.sizes;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int t0 = blockIdx.x * TILE_TOKENS, last = t0 + TILE_TOKENS - 1, kv = blockIdx.y, head = kv * GROUP;
    const int h = warp % GROUP, part = warp / GROUP;
    const size_t ldv = (size_t)(s.heads + 2 * s.kv_heads) * TILE_DIM;
    let_next_begin();
    wait_for_previous();
    copy_queries<GROUP>(queries, args.q, s, t0, head);
    const int first[2] = {first_key(args.start, s.window, t0 + g), first_key(args.start, s.window, t0 + g + 8)};
    float out[COLUMNS / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int c0 = first_key(args.start, s.window, t0); c0 <= last; c0 += TILE_KEYS) {
        __syncthreads();
        copy_rows(keys, args.k + kv * TILE_DIM, (size_t)s.kv_heads * TILE_DIM, c0, TILE_KEYS, last);
        copy_rows(values, args.qkv + (s.heads + s.kv_heads + kv) * TILE_DIM, ldv, c0, TILE_KEYS, last);
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
        float scores[4][4] = {};
#pragma unroll 4
        for (int k = 0; k < TILE_DIM; k += 16) {
            uint32_t a[4], b[4];
            as_left(a, queries + h * TILE_TOKENS * TILE_ROW, k, lane);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                as_right_transposed(b, keys + n * 16 * TILE_ROW, k, lane);
                mma(scores[2 * n], a, b[0], b[1]);
                mma(scores[2 * n + 1], a, b[2], b[3]);
            }
        }
        float top[2] = {max[0], max[1]};
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = c0 + n * 8 + 2 * q + e % 2, token = t0 + g + e / 2 * 8;
                scores[n][e] = key >= first[e / 2] && key <= token ? scores[n][e] * s.scale : -INFINITY;
                top[e / 2] = fmaxf(top[e / 2], scores[n][e]);
            }
        float fade[2], base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(0xffffffffu, top[r], 2));
            // A token may see none of the first keys of its tile: −∞ − −∞ would be NaN.
            base[r] = top[r] == -INFINITY ? 0.0f : top[r];
            fade[r] = expf(max[r] - base[r]);
            max[r] = top[r];
            sum[r] *= fade[r];
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                scores[n][e] = expf(scores[n][e] - base[e / 2]);
                sum[e / 2] += scores[n][e];
            }
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) out[n][e] *= fade[e / 2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            uint32_t a[4];
            rounded_left(a, scores[2 * n], scores[2 * n + 1]);
            add_product<COLUMNS>(out, a, values + n * 16 * TILE_ROW, part * COLUMNS, lane);
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
        sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        const size_t token = t0 + g + r * 8;
        if (part == 0 && q == 0) args.lse[token * s.heads + head + h] = max[r] + logf(sum[r]);
        bf16 *y = args.y + token * args.ldy + (head + h) * TILE_DIM + part * COLUMNS + 2 * q;
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
            *(uint32_t *)(y + n * 8) = pack(out[n][2 * r] / sum[r], out[n][2 * r + 1] / sum[r]);
    }
}

// What a warp has made, [16, COLUMNS] of head `h`, where all heads' sums are put together.
template <int COLUMNS>
__device__ __forceinline__ void put_sums(float *sums, const float (&of)[COLUMNS / 8][4], int h, int column, int lane) {
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *(float2 *)(sums + (h * TILE_TOKENS + lane / 4 + r * 8) * TILE_SUMS + column + n * 8 + lane % 4 * 2) =
                make_float2(of[n][2 * r], of[n][2 * r + 1]);
}

// The queries' gradients.
template <int GROUP> __device__ void tiles_d_query(const AttentionBackward<bf16> &args, bf16 *tiles) {
    const int PARTS = TILE_WARPS / GROUP, COLUMNS = TILE_DIM / PARTS;
    bf16 *queries = tiles, *d_out = queries + GROUP * TILE_TOKENS * TILE_ROW;
    bf16 *keys = d_out + GROUP * TILE_TOKENS * TILE_ROW, *values = keys + TILE_KEYS * TILE_ROW;
    const AttentionSizes &s = args.sizes;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int t0 = blockIdx.x * TILE_TOKENS, last = t0 + TILE_TOKENS - 1, kv = blockIdx.y / 2, head = kv * GROUP;
    const int h = warp % GROUP, part = warp / GROUP;
    const size_t ldv = (size_t)(s.heads + 2 * s.kv_heads) * TILE_DIM;
    copy_queries<GROUP>(queries, args.q, s, t0, head);
    float *delta = (float *)(values + TILE_KEYS * TILE_ROW);    // [heads, 16]
    round_gradients<GROUP>(d_out, delta, args, t0, head);
    int first[2];
    float lse[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int token = t0 + g + r * 8;
        first[r] = first_key(args.start, s.window, token);
        lse[r] = args.lse[(size_t)token * s.heads + head + h];
    }
    float d_query[COLUMNS / 8][4] = {};
    for (int c0 = first_key(args.start, s.window, t0); c0 <= last; c0 += TILE_KEYS) {
        __syncthreads();
        copy_rows(keys, args.k + kv * TILE_DIM, (size_t)s.kv_heads * TILE_DIM, c0, TILE_KEYS, last);
        copy_rows(values, args.qkv + (s.heads + s.kv_heads + kv) * TILE_DIM, ldv, c0, TILE_KEYS, last);
        commit_copies();
        wait_for_copies<0>();
        __syncthreads();
        float scores[4][4] = {}, dp[4][4] = {};
#pragma unroll 2
        for (int k = 0; k < TILE_DIM; k += 16) {
            uint32_t a[4], d[4], b[4];
            as_left(a, queries + h * TILE_TOKENS * TILE_ROW, k, lane);
            as_left(d, d_out + h * TILE_TOKENS * TILE_ROW, k, lane);
#pragma unroll
            for (int n = 0; n < 2; n++) {
                as_right_transposed(b, keys + n * 16 * TILE_ROW, k, lane);
                mma(scores[2 * n], a, b[0], b[1]);
                mma(scores[2 * n + 1], a, b[2], b[3]);
                as_right_transposed(b, values + n * 16 * TILE_ROW, k, lane);
                mma(dp[2 * n], d, b[0], b[1]);
                mma(dp[2 * n + 1], d, b[2], b[3]);
            }
        }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int key = c0 + n * 8 + 2 * q + e % 2, token = t0 + g + e / 2 * 8, r = e / 2;
                const float p = key >= first[r] && key <= token ? expf(scores[n][e] * s.scale - lse[r]) : 0.0f;
                scores[n][e] = p * (dp[n][e] - delta[h * TILE_TOKENS + g + r * 8]) * s.scale;
            }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            uint32_t a[4];
            rounded_left(a, scores[2 * n], scores[2 * n + 1]);
            add_product<COLUMNS>(d_query, a, keys + n * 16 * TILE_ROW, part * COLUMNS, lane);
        }
    }
    float *sums = (float *)tiles;
    __syncthreads();
    put_sums<COLUMNS>(sums, d_query, h, part * COLUMNS, lane);
    __syncthreads();
    for (int row = warp; row < GROUP * TILE_TOKENS; row += TILE_WARPS) {
        const size_t token = t0 + row % TILE_TOKENS, of = head + row / TILE_TOKENS, at = token * s.heads + of;
        const size_t angle = (size_t)args.positions[token] * (TILE_DIM / 2);
        norm_rope_backward(sums + row * TILE_SUMS, args.qkv + token * ldv + of * TILE_DIM, args.weight_q,
                           args.rstd[token * (s.heads + s.kv_heads) + of], args.cos + angle, args.sin + angle,
                           args.d_qkv + token * ldv + of * TILE_DIM,
                           args.terms_q == nullptr ? nullptr : args.terms_q + at * TILE_DIM, TILE_DIM, lane);
    }
}

// Of all heads of the group, in their order, into the first one's rows.
template <int GROUP> __device__ __forceinline__ float sum_of_heads(const float *sums, int row, int column) {
    float sum = 0.0f;
#pragma unroll
    for (int h = 0; h < GROUP; h++) sum += sums[(h * TILE_TOKENS + row) * TILE_SUMS + column];
    return sum;
}

// The keys' and the values' gradients.
template <int GROUP> __device__ void tiles_d_key(const AttentionBackward<bf16> &args, bf16 *tiles) {
    const int PARTS = TILE_WARPS / GROUP, COLUMNS = TILE_DIM / PARTS;
    bf16 *queries = tiles, *d_out = queries + GROUP * TILE_TOKENS * TILE_ROW;
    bf16 *keys = d_out + GROUP * TILE_TOKENS * TILE_ROW, *values = keys + TILE_KEYS * TILE_ROW;
    float *lse = (float *)(values + TILE_KEYS * TILE_ROW), *delta = lse + GROUP * TILE_TOKENS;    // [heads, 16]
    const AttentionSizes &s = args.sizes;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int t0 = blockIdx.x * TILE_TOKENS, kv = blockIdx.y / 2, head = kv * GROUP;
    const int h = warp % GROUP, part = warp / GROUP;
    const size_t ldv = (size_t)(s.heads + 2 * s.kv_heads) * TILE_DIM;
    copy_rows(keys, args.k + kv * TILE_DIM, (size_t)s.kv_heads * TILE_DIM, t0, TILE_TOKENS, t0 + TILE_TOKENS - 1);
    copy_rows(values, args.qkv + (s.heads + s.kv_heads + kv) * TILE_DIM, ldv, t0, TILE_TOKENS, t0 + TILE_TOKENS - 1);
    const int ends[2] = {end_of_queries(args.end, s.window, t0 + g), end_of_queries(args.end, s.window, t0 + g + 8)};
    const int end = end_of_queries(args.end, s.window, t0 + TILE_TOKENS - 1);
    float d_key[COLUMNS / 8][4] = {}, d_value[COLUMNS / 8][4] = {};
    for (int q0 = t0; q0 < end; q0 += TILE_TOKENS) {
        __syncthreads();
        copy_queries<GROUP>(queries, args.q, s, q0, head);
        commit_copies();
        round_gradients<GROUP>(d_out, delta, args, q0, head);
        for (int i = threadIdx.x; i < GROUP * TILE_TOKENS; i += TILE_WARPS * 32)
            lse[i] = args.lse[(size_t)(q0 + i % TILE_TOKENS) * s.heads + head + i / TILE_TOKENS];
        wait_for_copies<0>();
        __syncthreads();
        // Keys are rows here, queries columns.
        float scores[2][4] = {}, dp[2][4] = {};
#pragma unroll 2
        for (int k = 0; k < TILE_DIM; k += 16) {
            uint32_t a[4], b[4];
            as_left(a, keys, k, lane);
            as_right_transposed(b, queries + h * TILE_TOKENS * TILE_ROW, k, lane);
            mma(scores[0], a, b[0], b[1]);
            mma(scores[1], a, b[2], b[3]);
            as_left(a, values, k, lane);
            as_right_transposed(b, d_out + h * TILE_TOKENS * TILE_ROW, k, lane);
            mma(dp[0], a, b[0], b[1]);
            mma(dp[1], a, b[2], b[3]);
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int column = n * 8 + 2 * q + e % 2, query = q0 + column, key = t0 + g + e / 2 * 8;
                const bool seen = query >= key && query < ends[e / 2];
                const float p = seen ? expf(scores[n][e] * s.scale - lse[h * TILE_TOKENS + column]) : 0.0f;
                scores[n][e] = p;
                dp[n][e] = p * (dp[n][e] - delta[h * TILE_TOKENS + column]) * s.scale;
            }
        uint32_t a[4];
        rounded_left(a, scores[0], scores[1]);
        add_product<COLUMNS>(d_value, a, d_out + h * TILE_TOKENS * TILE_ROW, part * COLUMNS, lane);
        rounded_left(a, dp[0], dp[1]);
        add_product<COLUMNS>(d_key, a, queries + h * TILE_TOKENS * TILE_ROW, part * COLUMNS, lane);
    }
    float *sums = (float *)tiles;
    __syncthreads();
    put_sums<COLUMNS>(sums, d_value, h, part * COLUMNS, lane);
    __syncthreads();
    for (int i = threadIdx.x * 2; i < TILE_TOKENS * TILE_DIM; i += TILE_WARPS * 64) {
        const int row = i / TILE_DIM, column = i % TILE_DIM;
        const float one = sum_of_heads<GROUP>(sums, row, column), two = sum_of_heads<GROUP>(sums, row, column + 1);
        *(uint32_t *)(args.d_qkv + (size_t)(t0 + row) * ldv + (s.heads + s.kv_heads + kv) * TILE_DIM + column) = pack(one, two);
    }
    __syncthreads();
    put_sums<COLUMNS>(sums, d_key, h, part * COLUMNS, lane);
    __syncthreads();
    for (int row = warp; row < TILE_TOKENS; row += TILE_WARPS) {
        // A warp's own row: nobody else reads or writes it.
        for (int column = lane; column < TILE_DIM; column += 32)
            sums[row * TILE_SUMS + column] = sum_of_heads<GROUP>(sums, row, column);
        __syncwarp();
        const size_t token = t0 + row, at = (token * s.kv_heads + kv) * TILE_DIM, of = s.heads + kv;
        const size_t angle = (size_t)args.positions[token] * (TILE_DIM / 2);
        norm_rope_backward(sums + row * TILE_SUMS, args.qkv + token * ldv + of * TILE_DIM, args.weight_k,
                           args.rstd[token * (s.heads + s.kv_heads) + of], args.cos + angle, args.sin + angle,
                           args.d_qkv + token * ldv + of * TILE_DIM, args.terms_k == nullptr ? nullptr : args.terms_k + at,
                           TILE_DIM, lane);
    }
}

// Grid [tokens / 16, 2 · kv_heads], 512 threads: one half of the blocks takes queries, the other keys and values.
template <int GROUP> __device__ void attention_tiles_backward(const AttentionBackward<bf16> &args) {
    extern __shared__ __align__(16) bf16 tiles[];
    let_next_begin();
    wait_for_previous();
    if (blockIdx.y % 2 == 0) tiles_d_query<GROUP>(args, tiles);
    else tiles_d_key<GROUP>(args, tiles);
}

// By the query heads of a key/value head: Gemma 3's 270M and 1B have four, 4B and 12B two.
template <class T> __device__ void attention_tiles_2(const AttentionForward<T> &args) { attention_tiles<2>(args); }
template <class T> __device__ void attention_tiles_4(const AttentionForward<T> &args) { attention_tiles<4>(args); }
template <class T> __device__ void attention_tiles_backward_2(const AttentionBackward<T> &args) { attention_tiles_backward<2>(args); }
template <class T> __device__ void attention_tiles_backward_4(const AttentionBackward<T> &args) { attention_tiles_backward<4>(args); }

FOR_BF16_OF((512), attention_tiles_2, AttentionForward)
FOR_BF16_OF((512), attention_tiles_4, AttentionForward)
FOR_BF16_OF((512), attention_tiles_backward_2, AttentionBackward)
FOR_BF16_OF((512), attention_tiles_backward_4, AttentionBackward)
