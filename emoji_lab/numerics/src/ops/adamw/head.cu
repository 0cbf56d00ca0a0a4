// AdamW of a head whose gradient is never in memory: each piece of it is made where it is used, as
// d_logitsᵀ · hidden by tensor cores, with the gradient of the rows that were looked up. Its norm comes from
// grad_norm/head.cu.
#include "../bulk.cuh"
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

const int HEAD_TOKENS = 192, HEAD_ROWS = 8, HEAD_STAGES = 3;

// Four moments in shared memory.
__device__ __forceinline__ void get_four(float (&x)[4], float4 v) { x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w; }
__device__ __forceinline__ void put_moments(float *m_to, float *v_to, const float (&m)[4], const float (&v)[4], const Step &,
                                            size_t) {
    *(float4 *)m_to = make_float4(m[0], m[1], m[2], m[3]);
    *(float4 *)v_to = make_float4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ void put_moments(bf16 *m_to, bf16 *v_to, const float (&m)[4], const float (&v)[4], const Step &s,
                                            size_t i) {
    rounded_moments(*(uint2 *)m_to, *(uint2 *)v_to, m, v, s, i);
}

// Where eight rows of the head and what belongs to them lie in shared memory. A row has 16 bytes more than it needs:
// four lanes' rows then begin in different banks.
template <class M, int STEPS> struct HeadStage {
    M *exp_avg, *exp_avg_sq;       // [8, moments_ld]
    bf16 *high;                    // [8, halves_ld]
    int16_t *low;                  // as `high`
    bf16 *d_logits;                // [STEPS · 16, 8]
    int moments_ld, halves_ld;

    static __device__ __forceinline__ int bytes(int columns) {
        return HEAD_ROWS * (2 * (columns * (int)sizeof(M) + 16) + 2 * (columns * 2 + 16)) + STEPS * 16 * 16;
    }
    __device__ __forceinline__ HeadStage(char *from, int columns) {
        moments_ld = columns + 16 / (int)sizeof(M), halves_ld = columns + 8;
        exp_avg = (M *)from, exp_avg_sq = exp_avg + HEAD_ROWS * moments_ld;
        high = (bf16 *)(exp_avg_sq + HEAD_ROWS * moments_ld), low = (int16_t *)(high + HEAD_ROWS * halves_ld);
        d_logits = (bf16 *)(low + HEAD_ROWS * halves_ld);
    }
};

// Has the copy engine bring the rows of `tile` into a stage, or take back what was made of them. By a warp, of which a
// lane has one row of one of the four; it arrives 33 times at the stage's barrier.
template <class M, int STEPS> struct HeadCopies {
    char *memory;       // the lane's column of the first row
    int wide, bytes;    // of one value, and of a row
    int of, own;        // which of the four, and which of eight rows

    __device__ __forceinline__ HeadCopies(const AdamwHead<M> &a, int from, int end, int lane) {
        of = lane / HEAD_ROWS, own = lane % HEAD_ROWS;
        wide = of < 2 ? (int)sizeof(M) : 2, bytes = end * wide;
        memory = of == 0 ? (char *)a.exp_avg : of == 1 ? (char *)a.exp_avg_sq : of == 2 ? (char *)a.high : (char *)a.low;
        memory += (size_t)from * wide;
    }
    __device__ __forceinline__ char *in(const HeadStage<M, STEPS> &stage) const {
        return of == 0   ? (char *)(stage.exp_avg + own * stage.moments_ld)
               : of == 1 ? (char *)(stage.exp_avg_sq + own * stage.moments_ld)
               : of == 2 ? (char *)(stage.high + own * stage.halves_ld)
                         : (char *)(stage.low + own * stage.halves_ld);
    }
    __device__ __forceinline__ void store(const AdamwHead<M> &a, const HeadStage<M, STEPS> &stage, int tile) const {
        const int row = tile * HEAD_ROWS + own;
        if (row < a.vocab) bulk_store(memory + (size_t)row * a.width * wide, in(stage), bytes);
        wait_for_bulk_reads();
    }
    // With which of the rows were looked up: hardly ever one.
    __device__ __forceinline__ void load(const AdamwHead<M> &a, const HeadStage<M, STEPS> &stage, int tile, uint64_t *full,
                                         uint8_t *place_of, const int *row_at) const {
        const int lane = threadIdx.x & 31, v0 = tile * HEAD_ROWS;
        const int count = a.vocab - v0 < HEAD_ROWS ? a.vocab - v0 : HEAD_ROWS;
        if (lane < HEAD_ROWS) place_of[lane] = 255;
        __syncwarp();
        for (int k = lane; k < HEAD_TOKENS; k += 32)
            if (row_at[k] >= v0 && row_at[k] < v0 + HEAD_ROWS) place_of[row_at[k] - v0] = k;
        __syncwarp();
        if (lane == 0) arrive_expecting(full, count * (bytes / wide) * (2 * (int)sizeof(M) + 4));
        __syncwarp();
        if (own < count) bulk_load(in(stage), memory + (size_t)(v0 + own) * a.width * wide, bytes, full);
        // Not by the copy engine: it takes as long for 16 bytes as for a row.
        for (int t = lane; t < a.tokens; t += 32)
            copy_16(stage.d_logits + t * 8, a.d_logits + (size_t)t * a.vocab + v0, true);
        arrive_after_copies(full);
    }
};

// Grid [blocks, width / columns], a warp for every 32 columns. A block goes over the head's rows, eight at a time. The
// copy engine brings three times eight rows of all that is trained, and takes back what the warps have made of them
// where it lay: memory is read and written in whole rows. Warps take turns at telling it.
//
// A warp keeps its 32 columns of `hidden` in registers, as the left factor [columns, tokens]; lane l has columns
// 4 · (l / 4) to + 3 of rows 2 · (l % 4) and the next. For that row i of the factor's tile n (of two) is column
// 4 · (i % 8) + 2 · n + i / 8.
template <class M, int STEPS> __device__ void adamw_head(const AdamwHead<M> &a) {
    extern __shared__ __align__(128) char stages[];
    __shared__ uint64_t full[HEAD_STAGES], done[HEAD_STAGES];
    __shared__ int row_at[HEAD_TOKENS];     // by place in `order`: the row of the run that begins there, −1 for none
    __shared__ uint8_t place_of[HEAD_STAGES][HEAD_ROWS];    // 255 for none
    __shared__ Factors factors;
    __shared__ Rates rates;
    if (!a.result->finite) return;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, q = lane & 3, g = lane >> 2;
    const int width = a.width, from = blockIdx.y * a.columns, warps = a.columns / 32;
    const int end = from + a.columns < width ? a.columns : width - from;
    const int tiles = (a.vocab + HEAD_ROWS - 1) / HEAD_ROWS;
    const int stage_bytes = HeadStage<M, STEPS>::bytes(a.columns);
    const Step &s = *a.step;
    for (int i = threadIdx.x; i < HEAD_TOKENS; i += blockDim.x)
        row_at[i] = a.dx != nullptr && i < a.tokens && a.runs[i] > 0 ? a.ids[a.order[i]] : -1;
    // Tokens there are none of: their rows are never copied.
    for (int i = threadIdx.x; i < HEAD_STAGES * STEPS * 16; i += blockDim.x) {
        const HeadStage<M, STEPS> stage(stages + i / (STEPS * 16) * stage_bytes, a.columns);
        *(uint4 *)(stage.d_logits + i % (STEPS * 16) * 8) = make_uint4(0, 0, 0, 0);
    }
    written_for_bulk();
    if (threadIdx.x == 0) {
        factors = s.factors;
        rates = Rates::of(s.factors, a.result->gradient_scale, a.decays ? s.embedding_decay : 1.0f, s.embedding_step_size);
        for (int n = 0; n < HEAD_STAGES; n++) make_barrier(full + n, 1 + 32), make_barrier(done + n, warps);
        barriers_are_made();
    }
    __syncthreads();
    if (warp == 0) {
        const HeadCopies<M, STEPS> copies(a, from, end, lane);
        for (int n = 0; n < HEAD_STAGES && blockIdx.x + n * gridDim.x < tiles; n++)
            copies.load(a, HeadStage<M, STEPS>(stages + n * stage_bytes, a.columns), blockIdx.x + n * gridDim.x, full + n,
                        place_of[n], row_at);
    }
    const int c = warp * 32 + 4 * g;    // of the block's columns
    uint32_t left[STEPS][2][4];
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        uint2 of[4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            const int t = k * 16 + n / 2 * 8 + 2 * q + n % 2;
            of[n] = make_uint2(0, 0);
            if (t < a.tokens && c < end) of[n] = *(const uint2 *)(a.hidden + (size_t)t * width + from + c);
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
            left[k][0][2 * n] = __byte_perm(of[2 * n].x, of[2 * n + 1].x, 0x5410);
            left[k][0][2 * n + 1] = __byte_perm(of[2 * n].x, of[2 * n + 1].x, 0x7632);
            left[k][1][2 * n] = __byte_perm(of[2 * n].y, of[2 * n + 1].y, 0x5410);
            left[k][1][2 * n + 1] = __byte_perm(of[2 * n].y, of[2 * n + 1].y, 0x7632);
        }
    }
    int n = 0, parity = 0, turn = 0;    // of the stage, of its barriers' phase, and whose turn it is
    for (int tile = blockIdx.x;; tile += gridDim.x) {
        if (tile > blockIdx.x && warp == turn) {
            // The tile before is to go, and the one two further to come in its place.
            const int before = n == 0 ? HEAD_STAGES - 1 : n - 1, next = tile + (HEAD_STAGES - 1) * gridDim.x;
            const HeadStage<M, STEPS> stage(stages + before * stage_bytes, a.columns);
            const HeadCopies<M, STEPS> copies(a, from, end, lane);
            wait_for(done + before, n == 0 ? parity ^ 1 : parity);
            copies.store(a, stage, tile - gridDim.x);
            if (next < tiles) copies.load(a, stage, next, full + before, place_of[before], row_at);
        }
        if (tile >= tiles) return;
        const HeadStage<M, STEPS> stage(stages + n * stage_bytes, a.columns);
        wait_for(full + n, parity);
        float sums[2][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k += 2) {
            uint32_t right[4];
            load_transposed(right, stage.d_logits + (k * 16 + lane) * 8);
            mma(sums[0], left[k][0], right[0], right[1]);
            mma(sums[1], left[k][1], right[0], right[1]);
            mma(sums[0], left[k + 1][0], right[2], right[3]);
            mma(sums[1], left[k + 1][1], right[2], right[3]);
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int own = 2 * q + r, row = tile * HEAD_ROWS + own;
            if (row >= a.vocab || c >= end) continue;
            float gradient[4] = {sums[0][r], sums[0][2 + r], sums[1][r], sums[1][2 + r]};
            const int place = place_of[n][own];
            if (place < HEAD_TOKENS) {
                float of_rows[4] = {};
                for (int t = 0; t < a.runs[place]; t++) {
                    const float4 x = *(const float4 *)(a.dx + (size_t)a.order[place + t] * width + from + c);
                    of_rows[0] += x.x, of_rows[1] += x.y, of_rows[2] += x.z, of_rows[3] += x.w;
                }
#pragma unroll
                for (int e = 0; e < 4; e++) gradient[e] += of_rows[e] * a.scale;
            }
            M *m_at = stage.exp_avg + own * stage.moments_ld + c, *v_at = stage.exp_avg_sq + own * stage.moments_ld + c;
            uint2 *high = (uint2 *)(stage.high + own * stage.halves_ld + c), *low = (uint2 *)(stage.low + own * stage.halves_ld + c);
            float m[4], v[4], p[4];
            get_four(m, four(m_at, 0)), get_four(v, four(v_at, 0));
            join_four(p, *high, *low);
            adamw_of_four(p, gradient, m, v, factors, rates);
            put_moments(m_at, v_at, m, v, s, a.first + (size_t)row * width + from + c);
            split_four(*high, *low, p);
        }
        written_for_bulk();
        __syncwarp();
        if (lane == 0) arrive(done + n);
        if (++n == HEAD_STAGES) n = 0, parity ^= 1;
        if (++turn == warps) turn = 0;
    }
}

// For up to 128 tokens, 20 warps; for up to 192, ten; by the type of the moments.
template <class M> __device__ void adamw_head_128(const AdamwHead<M> &args) { adamw_head<M, 8>(args); }
template <class M> __device__ void adamw_head_192(const AdamwHead<M> &args) { adamw_head<M, 12>(args); }

FOR_BOTH_TYPES_OF((640, 1), adamw_head_128, AdamwHead)
FOR_BOTH_TYPES_OF((320, 1), adamw_head_192, AdamwHead)
