// The next token, chosen from the logits of all (mod.rs says by what rule).
//
// Both filters look for a threshold: the largest key of which the tokens at and above weigh enough,
// where a token weighs 1 for top_k and e^(x − max), in integers, for top_p. It is found digit by digit
// from the left: tokens that begin as the threshold does are counted by their next digit (a histogram in
// every block, added up in memory), and the next kernel finds the digit. What is switched off returns at
// once, so that one graph serves all settings.
#include "../common.cuh"
#include "../decode/state.cuh"

const int SAMPLE_THREADS = 1024, SAMPLE_TOKENS = 2048;    // of a block
const int SAMPLE_BINS = 2048, SAMPLE_LEVELS = 3;          // digits of 11, 11 and 10 bits

typedef unsigned long long u64;

struct SampleRule {
    u64 seed;
    double top_p;         // 1 or more for all
    float temperature;
    float penalty;        // 1 for none
    int top_k;            // 0 for all
    int draw;             // whether there is noise
};
MIRRORED(SampleRule, 32, AT(seed, 0) AT(top_p, 8) AT(temperature, 16) AT(penalty, 20) AT(top_k, 24) AT(draw, 28))

// What is known of a threshold.
struct Threshold {
    u64 rest;             // weight still to be found among the keys that begin with
    uint32_t prefix;
    uint32_t unused;
};
MIRRORED(Threshold, 16, AT(rest, 0) AT(prefix, 8) AT(unused, 12))

// Of several rows (sequences), the fields of each behind those of the one before.
struct SampleBuffers {
    const SampleRule *rule;
    uint32_t *seen;            // [vocab / 32] bits: tokens that were there before
    float *x;                  // [vocab]: logits after penalty and temperature
    float *tops;               // [blocks]: the highest x of each block
    float *top;                // the highest of all
    u64 *histograms;           // [2 · levels][bins]: top_k's and then top_p's, zero between tokens
    Threshold *thresholds;     // [2 · levels]: known after each digit
    float *best;               // [blocks]: the highest score of each block
    int *best_row;
    int vocab;
    int blocks;
};
MIRRORED(SampleBuffers, 80,
         AT(rule, 0) AT(seen, 8) AT(x, 16) AT(tops, 24) AT(top, 32) AT(histograms, 40) AT(thresholds, 48) AT(best, 56)
         AT(best_row, 64) AT(vocab, 72) AT(blocks, 76))

struct SampleScale {
    const float *logits;    // [rows, vocab]
    SampleBuffers buffers;
};
MIRRORED(SampleScale, 88, AT(logits, 0) AT(buffers, 8))

// Of both filters: which digit is to be found.
struct SampleDigit {
    SampleBuffers buffers;
    int level;
};
MIRRORED(SampleDigit, 88, AT(buffers, 0) AT(level, 80))

struct SampleDraw {
    SampleBuffers buffers;
    const DecodeState *state;    // [rows]
};
MIRRORED(SampleDraw, 88, AT(buffers, 0) AT(state, 80))

struct SamplePick {
    SampleBuffers buffers;
    int *written;          // [rows, room], as many of a row as its state's limit says
    DecodeState *state;    // [rows]
    int room;
};
MIRRORED(SamplePick, 104, AT(buffers, 0) AT(written, 80) AT(state, 88) AT(room, 96))

// The buffers of this block's row.
__device__ __forceinline__ SampleBuffers row_of(SampleBuffers s) {
    const size_t row = blockIdx.y;
    s.rule += row, s.seen += row * ((s.vocab + 31) / 32), s.x += row * s.vocab;
    s.tops += row * s.blocks, s.top += row;
    s.histograms += row * 2 * SAMPLE_LEVELS * SAMPLE_BINS, s.thresholds += row * 2 * SAMPLE_LEVELS;
    s.best += row * s.blocks, s.best_row += row * s.blocks;
    return s;
}

// In the same bits as on the CPU: no contraction to fused operations.
__device__ __forceinline__ float mul_add(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

// ops/math.rs, `exp`.
__device__ __forceinline__ float sample_exp(float x) {
    const float y = fminf(fmaxf(x, -87.3f), 88.3f), magic = 12582912.0f;
    const float n = __fsub_rn(mul_add(y, 1.44269504f, magic), magic);
    const float r = __fadd_rn(__fsub_rn(y, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, 2.1219444e-4f));
    float p = 1.9875691e-4f;
    p = mul_add(p, r, 1.3981999e-3f);
    p = mul_add(p, r, 8.333452e-3f);
    p = mul_add(p, r, 4.1665796e-2f);
    p = mul_add(p, r, 1.6666665e-1f);
    p = mul_add(p, r, 0.5f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    return x < -87.3f ? 0.0f : __fmul_rn(p, __uint_as_float((uint32_t)((int)n + 127) << 23));
}

// gumbel.rs, `ln`.
__device__ __forceinline__ float sample_ln(float x) {
    const uint32_t bits = __float_as_uint(x);
    int exponent = (int)(bits >> 23) - 126;
    float m = __uint_as_float((bits & 0x7fffffu) | 0x3f000000u);
    if (m < 0.70710678f) exponent -= 1, m = __fadd_rn(m, m);
    m = __fsub_rn(m, 1.0f);
    const float e = (float)exponent, z = __fmul_rn(m, m);
    float p = 7.0376836e-2f;
    p = mul_add(p, m, -1.151461e-1f);
    p = mul_add(p, m, 1.1676999e-1f);
    p = mul_add(p, m, -1.2420141e-1f);
    p = mul_add(p, m, 1.4249323e-1f);
    p = mul_add(p, m, -1.6668058e-1f);
    p = mul_add(p, m, 2.0000715e-1f);
    p = mul_add(p, m, -2.4999994e-1f);
    p = mul_add(p, m, 3.333333e-1f);
    float y = __fmul_rn(__fmul_rn(p, m), z);
    y = __fsub_rn(y, __fmul_rn(e, 2.1219444e-4f));
    y = __fsub_rn(y, __fmul_rn(z, 0.5f));
    return __fadd_rn(__fadd_rn(m, y), __fmul_rn(e, 0.6933594f));
}

__device__ __forceinline__ float middle_of(uint32_t word) {
    return __fmul_rn(__fadd_rn((float)word, 0.5f), 2.3283064365386963e-10f);
}

// gumbel.rs, `gumbel`.
__device__ __forceinline__ float gumbel(u64 seed, int position, int token) {
    uint32_t words[4];
    philox(seed, (1ull << 61) | (u64)position, (u64)(token / 4), words);
    const int lane = token % 4;
    const uint32_t word = lane == 0 ? words[0] : lane == 1 ? words[1] : lane == 2 ? words[2] : words[3];
    float e;
    if (word >> 31 == 0) {
        const float u = middle_of(word), rest = __fsub_rn(1.0f, u);
        e = rest == 1.0f ? u : __fmul_rn(-sample_ln(rest), __fdiv_rn(u, __fsub_rn(1.0f, rest)));
    } else {
        e = -sample_ln(middle_of(~word));
    }
    return -sample_ln(e);
}

__device__ __forceinline__ uint32_t key_of(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ u64 weight_of(float x, float top) {
    const float w = __fmul_rn(sample_exp(__fsub_rn(x, top)), 1099511627776.0f);    // 2^40
    return w > 0.0f ? (u64)w : 0;                                                  // NaN is none
}

__device__ __forceinline__ int digit_bits(int level) { return level == 2 ? 10 : 11; }
__device__ __forceinline__ int digit_shift(int level) { return level == 0 ? 21 : level == 1 ? 10 : 0; }

// The threshold with one more digit: of the largest bin of which it and those above hold `from.rest`,
// or the share `top_p` of all of them. In every thread; no weight at all gives the lowest key.
__device__ __forceinline__ Threshold next_digit(const u64 *histogram, int level, Threshold from, double top_p) {
    __shared__ u64 sums[32];
    __shared__ Threshold found;
    const int bits = digit_bits(level), bins = 1 << bits;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int high = bins - 1 - 2 * (int)threadIdx.x;    // this thread's two bins, from the highest down
    const u64 a = high > 0 ? histogram[high] : 0, b = high > 0 ? histogram[high - 1] : 0;
    u64 upto = a + b;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const u64 before = __shfl_up_sync(0xffffffffu, upto, offset);
        if (lane >= offset) upto += before;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = upto;
    if (threadIdx.x == 0) found.rest = 0, found.prefix = from.prefix << bits;
    __syncthreads();
    u64 total = 0;
    for (int w = 0; w < 32; w++) {
        if (w < warp) upto += sums[w];
        total += sums[w];
    }
    u64 rest = from.rest;
    if (top_p < 1.0) {
        rest = (u64)ceil((double)total * top_p);
        rest = rest > total ? total : rest < 1 ? 1 : rest;
    }
    const u64 above = upto - a - b;
    if (above < rest && upto >= rest) {
        const bool first = above + a >= rest;
        found.rest = rest - above - (first ? 0 : a);
        found.prefix = from.prefix << bits | (uint32_t)(first ? high : high - 1);
    }
    __syncthreads();
    return found;
}

__device__ __forceinline__ bool has_top_k(const SampleBuffers &s) { return s.rule->top_k > 0 && s.rule->top_k < s.vocab; }
__device__ __forceinline__ bool has_top_p(const SampleBuffers &s) { return s.rule->top_p < 1.0; }

// Weights are split in two, so that shared memory's own 32-bit atomics do: 2048 tokens of at most 2^20.
__device__ __forceinline__ void clear_bins(uint32_t (&low)[SAMPLE_BINS], uint32_t (&high)[SAMPLE_BINS]) {
    for (int i = threadIdx.x; i < SAMPLE_BINS; i += SAMPLE_THREADS) low[i] = 0, high[i] = 0;
    __syncthreads();
}
__device__ __forceinline__ void add_bins(const uint32_t (&low)[SAMPLE_BINS], const uint32_t (&high)[SAMPLE_BINS], u64 *histogram) {
    __syncthreads();
    for (int i = threadIdx.x; i < SAMPLE_BINS; i += SAMPLE_THREADS) {
        const u64 sum = low[i] + ((u64)high[i] << 20);
        if (sum != 0) atomicAdd(histogram + i, sum);
    }
}

// The highest of a block, in every thread.
__device__ __forceinline__ float block_max(float v) {
    __shared__ float parts[32];
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    v = parts[0];
    for (int w = 1; w < 32; w++) v = fmaxf(v, parts[w]);
    return v;
}

// Penalty and temperature, the highest of each block, and top_k's first digits.
extern "C" __global__ void sample_scale(const __grid_constant__ SampleScale args) {
    const SampleBuffers s = row_of(args.buffers);
    __shared__ uint32_t low[SAMPLE_BINS], high[SAMPLE_BINS];
    const SampleRule rule = *s.rule;
    const bool top_k = has_top_k(s);
    clear_bins(low, high);
    float top = -INFINITY;
    for (int i = threadIdx.x; i < SAMPLE_TOKENS; i += SAMPLE_THREADS) {
        const int token = blockIdx.x * SAMPLE_TOKENS + i;
        if (token >= s.vocab) break;
        float x = args.logits[(size_t)blockIdx.y * s.vocab + token];
        if (rule.penalty != 1.0f && (s.seen[token >> 5] >> (token & 31) & 1u))
            x = x >= 0.0f ? __fdiv_rn(x, rule.penalty) : __fmul_rn(x, rule.penalty);
        x = __fadd_rn(__fdiv_rn(x, rule.temperature), 0.0f);
        if (!(x == x)) x = -INFINITY;
        s.x[token] = x;
        top = fmaxf(top, x);
        if (top_k) atomicAdd(low + (key_of(x) >> digit_shift(0)), 1u);
    }
    top = block_max(top);
    if (threadIdx.x == 0) s.tops[blockIdx.x] = top;
    if (top_k) add_bins(low, high, s.histograms);
}

// top_k's next digit, level 1 or 2.
extern "C" __global__ void sample_top_k(const __grid_constant__ SampleDigit args) {
    const SampleBuffers s = row_of(args.buffers);
    const int level = args.level;
    __shared__ uint32_t low[SAMPLE_BINS], high[SAMPLE_BINS];
    if (!has_top_k(s)) return;
    Threshold from = {(u64)s.rule->top_k, 0, 0};
    if (level > 1) from = s.thresholds[level - 2];
    from = next_digit(s.histograms + (level - 1) * SAMPLE_BINS, level - 1, from, 1.0);
    if (blockIdx.x == 0 && threadIdx.x == 0) s.thresholds[level - 1] = from;
    clear_bins(low, high);
    const int known = digit_shift(level - 1), shift = digit_shift(level), mask = (1 << digit_bits(level)) - 1;
    for (int i = threadIdx.x; i < SAMPLE_TOKENS; i += SAMPLE_THREADS) {
        const int token = blockIdx.x * SAMPLE_TOKENS + i;
        if (token >= s.vocab) break;
        const uint32_t key = key_of(s.x[token]);
        if (key >> known == from.prefix) atomicAdd(low + (key >> shift & mask), 1u);
    }
    add_bins(low, high, s.histograms + level * SAMPLE_BINS);
}

// top_k's last digit: the least key that it keeps.
__device__ __forceinline__ uint32_t least_of_top_k(const SampleBuffers &s) {
    if (!has_top_k(s)) return 0;
    return next_digit(s.histograms + 2 * SAMPLE_BINS, 2, s.thresholds[1], 1.0).prefix;
}

// top_p's next digit, level 0, 1 or 2.
extern "C" __global__ void sample_top_p(const __grid_constant__ SampleDigit args) {
    const SampleBuffers s = row_of(args.buffers);
    const int level = args.level;
    __shared__ uint32_t low[SAMPLE_BINS], high[SAMPLE_BINS];
    if (!has_top_p(s)) return;
    u64 *histograms = s.histograms + SAMPLE_LEVELS * SAMPLE_BINS;
    Threshold *thresholds = s.thresholds + SAMPLE_LEVELS, from = {0, 0, 0};
    uint32_t least;
    float top;
    if (level == 0) {
        least = least_of_top_k(s);
        top = -INFINITY;
        for (int i = threadIdx.x; i < s.blocks; i += SAMPLE_THREADS) top = fmaxf(top, s.tops[i]);
        top = block_max(top);
        // top_k's last threshold and the highest x are for the kernels after this one.
        if (blockIdx.x == 0 && threadIdx.x == 0) s.thresholds[2].prefix = least, *s.top = top;
    } else {
        least = s.thresholds[2].prefix;
        top = *s.top;
        if (level > 1) from = thresholds[level - 2];
        from = next_digit(histograms + (level - 1) * SAMPLE_BINS, level - 1, from, level == 1 ? s.rule->top_p : 1.0);
        if (blockIdx.x == 0 && threadIdx.x == 0) thresholds[level - 1] = from;
    }
    clear_bins(low, high);
    const int shift = digit_shift(level), mask = (1 << digit_bits(level)) - 1;
    for (int i = threadIdx.x; i < SAMPLE_TOKENS; i += SAMPLE_THREADS) {
        const int token = blockIdx.x * SAMPLE_TOKENS + i;
        if (token >= s.vocab) break;
        const float x = s.x[token];
        const uint32_t key = key_of(x);
        if (key < least || (level > 0 && key >> digit_shift(level - 1) != from.prefix)) continue;
        const u64 weight = weight_of(x, top);
        const uint32_t part = (uint32_t)weight & 0xfffffu, whole = (uint32_t)(weight >> 20);
        if (part != 0) atomicAdd(low + (key >> shift & mask), part);
        if (whole != 0) atomicAdd(high + (key >> shift & mask), whole);
    }
    add_bins(low, high, histograms + level * SAMPLE_BINS);
}

// What was kept, with its noise: the best of each block (the lowest of equals).
extern "C" __global__ void sample_draw(const __grid_constant__ SampleDraw args) {
    const SampleBuffers s = row_of(args.buffers);
    __shared__ int rows[32];
    const SampleRule rule = *s.rule;
    uint32_t least;
    if (has_top_p(s)) {
        const u64 *last = s.histograms + (2 * SAMPLE_LEVELS - 1) * SAMPLE_BINS;
        least = next_digit(last, 2, s.thresholds[SAMPLE_LEVELS + 1], 1.0).prefix;
        if (least < s.thresholds[2].prefix) least = s.thresholds[2].prefix;
    } else {
        least = least_of_top_k(s);
    }
    const int position = args.state[blockIdx.y].position + 1;
    float best = -INFINITY;
    int at = 0x7fffffff;
    for (int i = threadIdx.x; i < SAMPLE_TOKENS; i += SAMPLE_THREADS) {
        const int token = blockIdx.x * SAMPLE_TOKENS + i;
        if (token >= s.vocab) break;
        const float x = s.x[token];
        if (key_of(x) < least) continue;
        const float score = rule.draw ? __fadd_rn(x, gumbel(rule.seed, position, token)) : x;
        if (score > best || (score == best && token < at)) best = score, at = token;
    }
    const float top = block_max(best);
    if (best != top) at = 0x7fffffff;
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) at = min(at, __shfl_xor_sync(0xffffffffu, at, offset));
    if ((threadIdx.x & 31) == 0) rows[threadIdx.x >> 5] = at;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < 32; w++) at = min(at, rows[w]);
    s.best[blockIdx.x] = top;
    s.best_row[blockIdx.x] = at;
}

// The best of all is written where a token is wanted, becomes the next to be read, and has been seen. One
// block of 32 warps a row, which also clears the histograms.
extern "C" __global__ void sample_pick(const __grid_constant__ SamplePick args) {
    const SampleBuffers s = row_of(args.buffers);
    const int token = best_of_blocks(s.best, s.best_row, s.blocks);
    if (threadIdx.x == 0 && take_if_wanted(token, args.written + (size_t)blockIdx.y * args.room, args.state + blockIdx.y))
        s.seen[token >> 5] |= 1u << (token & 31);
    if (has_top_k(s))
        for (int i = threadIdx.x; i < SAMPLE_LEVELS * SAMPLE_BINS; i += SAMPLE_THREADS) s.histograms[i] = 0;
    if (has_top_p(s))
        for (int i = threadIdx.x; i < SAMPLE_LEVELS * SAMPLE_BINS; i += SAMPLE_THREADS)
            s.histograms[SAMPLE_LEVELS * SAMPLE_BINS + i] = 0;
}
