// AdamW of a head whose gradient is never in memory: each piece of it is made where it is used, as
// d_logitsᵀ · hidden by tensor cores, with the gradient of the rows that were looked up. Its norm comes from
// grad_norm/head.cu.
#include "../mma.cuh"
#include "elements.cuh"

template <class M> struct AdamwHead {
    bf16 *high;                           // [vocab, width]: the values' halves, as adamw/kernel.cu has them
    int16_t *low;
    M *exp_avg, *exp_avg_sq;              // [vocab, width]
    const bf16 *d_logits;                 // [tokens, vocab]
    const bf16 *hidden;                   // [tokens, width]
    const float *dx;                      // [tokens, width]: of the rows looked up in the head; null where it is no table
    const int *ids, *order, *runs;        // [tokens], as embedding/kernel.cu has them
    const Step *step;
    const StepResult *result;
    uint64_t first;                       // the head's first element among all
    float scale;                          // of what is looked up
    int tokens, vocab, width;
    int columns;                          // that a block makes, a multiple of 32
    int decays;
};
MIRRORED(AdamwHead<float>, 128,
         AT(high, 0) AT(low, 8) AT(exp_avg, 16) AT(exp_avg_sq, 24) AT(d_logits, 32) AT(hidden, 40) AT(dx, 48) AT(ids, 56)
         AT(order, 64) AT(runs, 72) AT(step, 80) AT(result, 88) AT(first, 96) AT(scale, 104) AT(tokens, 108)
         AT(vocab, 112) AT(width, 116) AT(columns, 120) AT(decays, 124))

const int HEAD_WARPS = 12, HEAD_TOKENS = 192, HEAD_ROWS = 16;

// Four moments as they lie in shared memory, and a lane's way there: 16 or 8 bytes, those of all lanes side by side.
__device__ __forceinline__ void get_four(float (&x)[4], const char *from, const float *) {
    const float4 v = *(const float4 *)from;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ __forceinline__ void get_four(float (&x)[4], const char *from, const bf16 *) {
    const uint2 v = *(const uint2 *)from;
    x[0] = __uint_as_float(v.x << 16), x[1] = __uint_as_float(v.x & 0xffff0000u);
    x[2] = __uint_as_float(v.y << 16), x[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ __forceinline__ void copy_four(char *to, const float *from, bool there) { copy_16(to, from, there); }
__device__ __forceinline__ void copy_four(char *to, const bf16 *from, bool there) { copy_8(to, from, there); }

// What a lane wants of 16 rows and 32 columns, on its way to its own places in shared memory: of two rows two times
// four columns, sixteen apart. So the four lanes of a row read whole sectors of memory, and nobody else reads what a
// lane has fetched, so nobody else is waited for.
template <class M> __device__ __forceinline__ void fetch(const AdamwHead<M> &a, char *to, int lane, int row, int column) {
    const int wide = 4 * sizeof(M);
#pragma unroll
    for (int n = 0; n < 4; n++) {
        const int r = row + n / 2 * 8, c = column + n % 2 * 16;
        const bool there = r < a.vocab && c < a.width;
        const size_t at = there ? (size_t)r * a.width + c : 0;
        copy_four(to + lane * wide, a.exp_avg + at, there);
        copy_four(to + 32 * wide + lane * wide, a.exp_avg_sq + at, there);
        copy_8(to + 64 * wide + lane * 8, a.high + at, there);
        copy_8(to + 64 * wide + 256 + lane * 8, a.low + at, there);
        to += 64 * wide + 512;
    }
    commit_copies();
}

// Grid [blocks, width / columns], 384 threads. A block keeps its columns of `hidden` in shared memory and goes over
// the head's rows, sixteen a warp: of 32 columns at a time the lane has two times four that lie next to each other. For
// that the words of every 16 columns lie in shared memory as the transpose of their 4 × 2. While a warp computes, the
// next 32 columns are on their way.
template <class M, int STEPS> __device__ void adamw_head(const AdamwHead<M> &a) {
    const int WIDE = 4 * sizeof(M), PART = 64 * WIDE + 512, RING = 4 * PART;    // bytes: one half of a warp's ring
    extern __shared__ __align__(16) uint32_t hidden[];    // [STEPS · 16, columns / 2 + 4], then the rings
    __shared__ int row_at[HEAD_TOKENS];     // by place in `order`: the row of the run that begins there, −1 for none
    __shared__ uint8_t place_of[HEAD_WARPS][HEAD_ROWS];    // 255 for none
    if (!a.result->finite) return;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int width = a.width, stride = a.columns / 2 + 4, from = blockIdx.y * a.columns, eights = a.columns / 8;
    const int end = from + a.columns < width ? a.columns : width - from, step_of_tiles = gridDim.x * HEAD_WARPS;
    const int tiles = (a.vocab + HEAD_ROWS - 1) / HEAD_ROWS;
    char *ring = (char *)(hidden + STEPS * 16 * stride) + warp * 2 * RING;
    int tile = blockIdx.x * HEAD_WARPS + warp, half = 0;
    if (tile < tiles) fetch(a, ring, lane, tile * HEAD_ROWS + g, from + 4 * q);
    for (int i = threadIdx.x; i < STEPS * 16 * eights; i += blockDim.x) {
        const int t = i / eights, e = i % eights, column = from + e * 8;
        uint4 word = make_uint4(0, 0, 0, 0);
        if (t < a.tokens && column < width) word = *(const uint4 *)(a.hidden + (size_t)t * width + column);
        uint32_t *to = hidden + t * stride + e / 2 * 8 + e % 2 * 2;
        to[0] = word.x, to[4] = word.y, to[1] = word.z, to[5] = word.w;
    }
    for (int i = threadIdx.x; i < HEAD_TOKENS; i += blockDim.x)
        row_at[i] = a.dx != nullptr && i < a.tokens && a.runs[i] > 0 ? a.ids[a.order[i]] : -1;
    __syncthreads();
    const Step &s = *a.step;
    const Factors f = s.factors;
    const Rates rates = {a.result->gradient_scale, a.decays ? s.embedding_decay : 1.0f, s.embedding_step_size};
    for (; tile < tiles; tile += step_of_tiles) {
        const int v0 = tile * HEAD_ROWS;
        // Which of these rows were looked up: hardly ever one.
        bool looked_up = false;
        for (int i = lane; i < HEAD_TOKENS; i += 32) looked_up |= row_at[i] >= v0 && row_at[i] < v0 + HEAD_ROWS;
        looked_up = __any_sync(0xffffffffu, looked_up);
        if (looked_up) {
            if (lane < HEAD_ROWS) place_of[warp][lane] = 255;
            __syncwarp();
            for (int i = lane; i < HEAD_TOKENS; i += 32)
                if (row_at[i] >= v0 && row_at[i] < v0 + HEAD_ROWS) place_of[warp][row_at[i] - v0] = i;
            __syncwarp();
        }
        // d_logits' columns of these rows, transposed.
        uint32_t d[STEPS][4];
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int t = k * 16 + n / 2 * 8 + g, v = v0 + n % 2 * 8 + 2 * q;
                d[k][n] = 0;
                if (t < a.tokens && v < a.vocab) d[k][n] = *(const uint32_t *)(a.d_logits + (size_t)t * a.vocab + v);
            }
#pragma unroll
        for (int k = 0; k < STEPS; k++)
#pragma unroll
            for (int n = 0; n < 4; n++) d[k][n] = transposed(d[k][n]);
        for (int c = 0; c < end; c += 32, half ^= 1) {
            const bool same = c + 32 < end;
            const int next = same ? tile : tile + step_of_tiles;
            if (next < tiles) fetch(a, ring + (half ^ 1) * RING, lane, next * HEAD_ROWS + g, from + (same ? c + 32 : 0) + 4 * q);
            else commit_copies();
            float sums[4][4] = {};
            const uint32_t *b = hidden + (lane & 15) * stride + c / 2 + lane / 16 * 4;
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                uint32_t left[4], right[4];
                load_transposed(left, b + k * 16 * stride);
                load_transposed(right, b + k * 16 * stride + 8);
                mma(sums[0], d[k], left[0], left[1]);
                mma(sums[1], d[k], left[2], left[3]);
                mma(sums[2], d[k], right[0], right[1]);
                mma(sums[3], d[k], right[2], right[3]);
            }
            wait_for_copies<1>();
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int r = n / 2, i = n % 2, row = v0 + g + 8 * r, column = from + c + 4 * q + 16 * i;
                if (row >= a.vocab || column >= width) continue;
                float gradient[4] = {sums[2 * i][2 * r], sums[2 * i][2 * r + 1], sums[2 * i + 1][2 * r], sums[2 * i + 1][2 * r + 1]};
                const int place = looked_up ? place_of[warp][g + 8 * r] : 255;
                if (place < HEAD_TOKENS) {
                    float of_rows[4] = {};
                    for (int t = 0; t < a.runs[place]; t++) {
                        const float4 x = *(const float4 *)(a.dx + (size_t)a.order[place + t] * width + column);
                        of_rows[0] += x.x, of_rows[1] += x.y, of_rows[2] += x.z, of_rows[3] += x.w;
                    }
#pragma unroll
                    for (int e = 0; e < 4; e++) gradient[e] += of_rows[e] * a.scale;
                }
                const char *own = ring + half * RING + n * PART;
                float m[4], v[4], p[4];
                get_four(m, own + lane * WIDE, a.exp_avg), get_four(v, own + 32 * WIDE + lane * WIDE, a.exp_avg);
                const uint2 high = *(const uint2 *)(own + 64 * WIDE + lane * 8);
                const uint2 low = *(const uint2 *)(own + 64 * WIDE + 256 + lane * 8);
                p[0] = joined(high.x & 0xffff, low.x & 0xffff), p[1] = joined(high.x >> 16, low.x >> 16);
                p[2] = joined(high.y & 0xffff, low.y & 0xffff), p[3] = joined(high.y >> 16, low.y >> 16);
                adamw_of_four(p, gradient, m, v, f, rates);
                const size_t at = (size_t)row * width + column;
                store_moments(a.exp_avg + at, a.exp_avg_sq + at, m, v, s, a.first + at);
                store_product(a.high + at, a.low + at, p);
            }
        }
    }
}

// For up to 128 tokens, and for up to 192; by the type of the moments.
template <class M> __device__ void adamw_head_128(const AdamwHead<M> &args) { adamw_head<M, 8>(args); }
template <class M> __device__ void adamw_head_192(const AdamwHead<M> &args) { adamw_head<M, 12>(args); }

FOR_BOTH_TYPES_OF((384, 1), adamw_head_128, AdamwHead)
FOR_BOTH_TYPES_OF((384, 1), adamw_head_192, AdamwHead)
