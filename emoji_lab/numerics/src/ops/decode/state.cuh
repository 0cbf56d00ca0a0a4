// Where generation stands, and the last step of every choice.
#pragma once
#include "../common.cuh"

struct DecodeState {
    int token;       // the one to be read
    int position;    // its place in the sequence
    int count;       // tokens written to `written` so far
    int limit;       // how many fit there
};
MIRRORED(DecodeState, 16, AT(token, 0) AT(position, 4) AT(count, 8) AT(limit, 12))

// The row with the highest of `count` values (the lowest of equals), in the first thread of a block of
// 32 warps.
__device__ __forceinline__ int best_of_blocks(const float *best, const int *best_row, int count) {
    __shared__ float tops[1024];
    __shared__ int rows[1024];
    float top = -INFINITY;
    int at = 0x7fffffff;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        if (best[i] > top || (best[i] == top && best_row[i] < at)) top = best[i], at = best_row[i];
    tops[threadIdx.x] = top, rows[threadIdx.x] = at;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        const int other = threadIdx.x + half;
        if (tops[other] > tops[threadIdx.x] || (tops[other] == tops[threadIdx.x] && rows[other] < rows[threadIdx.x]))
            tops[threadIdx.x] = tops[other], rows[threadIdx.x] = rows[other];
    }
    return rows[0];
}

// The token is written, and becomes the next to be read. One thread.
__device__ __forceinline__ void take(int token, int *written, DecodeState *state) {
    state->token = token;
    state->position += 1;
    if (state->count < state->limit) written[state->count++] = token;
}

// The same where there is room for it; else nothing changes, and false is the answer. One thread.
__device__ __forceinline__ bool take_if_wanted(int token, int *written, DecodeState *state) {
    if (state->count >= state->limit) return false;
    written[state->count++] = token;
    state->token = token;
    state->position += 1;
    return true;
}
