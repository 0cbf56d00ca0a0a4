// AdamW over one flat arena (formula: cpu.rs), with clipping. Moments are f32 or bf16 (`M`).
#include "elements.cuh"

// A piece of the arena, a block's work: elements that lie next to each other and are treated alike.
// `first`, `at` and `len` are multiples of 4.
struct Piece {
    uint64_t first;    // its first element among all: there its moments lie
    uint64_t at;       // and in the buffer of its values and gradients
    uint32_t len;
    uint32_t kind;     // bits of the constants below
};
MIRRORED(Piece, 24, AT(first, 0) AT(at, 8) AT(len, 16) AT(kind, 20))
const uint32_t OF_PRODUCTS = 1;     // what products read: values of `T` apart from the others
const uint32_t OF_EMBEDDING = 2;    // has the embedding's learning rate
const uint32_t DECAYS = 4;

// What products read (head, matrices) lies apart from the other values, in the compute type `T`, so that
// they read it as it is. Where that is bf16, `low` has the other half of the f32 that is trained:
// value = high · 2¹⁶ + low, as integers. `G` is the type of its gradients.
template <class T, class M = T, class G = T> struct AdamwStep {
    float *values;                    // of all others
    T *products;
    int16_t *low;                     // as `products`; null in f32
    const float *gradients;           // as `values`
    const G *product_gradients;       // as `products`
    M *exp_avg, *exp_avg_sq;          // of everything
    const Step *step;
    const StepResult *result;
    const Piece *pieces;              // one per block
};
MIRRORED(AdamwStep<float>, 80,
         AT(values, 0) AT(products, 8) AT(low, 16) AT(gradients, 24) AT(product_gradients, 32) AT(exp_avg, 40)
         AT(exp_avg_sq, 48) AT(step, 56) AT(result, 64) AT(pieces, 72))

// A step whose gradients are not finite changes nothing.
template <class T, class M, class G> __device__ void adamw(const AdamwStep<T, M, G> &a) {
    const Piece piece = a.pieces[blockIdx.x];
    if (!a.result->finite) return;
    const Step s = *a.step;
    const Factors &f = s.factors;
    const bool of_products = piece.kind & OF_PRODUCTS, of_embedding = piece.kind & OF_EMBEDDING;
    const float decay = !(piece.kind & DECAYS) ? 1.0f : of_embedding ? s.embedding_decay : f.decay;
    const Rates rates = Rates::of(f, a.result->gradient_scale, decay, of_embedding ? s.embedding_step_size : f.step_size);
    for (uint32_t n4 = threadIdx.x * 4; n4 < piece.len; n4 += blockDim.x * 4) {
        const size_t i = piece.first + n4, at = piece.at + n4;
        float p[4], g[4], m[4], v[4];
        load_four(m, a.exp_avg + i);
        load_four(v, a.exp_avg_sq + i);
        if (of_products) {
            load_product(p, a.products + at, a.low + at);
            load_four(g, a.product_gradients + at);
        } else {
            load_four(p, a.values + at);
            load_four(g, a.gradients + at);
        }
        adamw_of_four(p, g, m, v, f, rates);
        store_moments(a.exp_avg + i, a.exp_avg_sq + i, m, v, s, i);
        if (of_products) store_product(a.products + at, a.low + at, p);
        else store_four(a.values + at, p);
    }
}

// By the type of the moments, and of the gradients of what products read: the compute type, or f32 where
// several micro-batches are added up.
extern "C" __global__ void adamw_f32(const __grid_constant__ AdamwStep<float, float, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16(const __grid_constant__ AdamwStep<bf16, float, bf16> args) { adamw(args); }
extern "C" __global__ void adamw_f32_gradients_f32(const __grid_constant__ AdamwStep<float, float, float> args) { adamw(args); }
extern "C" __global__ void adamw_f32_gradients_bf16(const __grid_constant__ AdamwStep<bf16, float, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32(const __grid_constant__ AdamwStep<float, bf16, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_bf16(const __grid_constant__ AdamwStep<bf16, bf16, bf16> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32_gradients_f32(const __grid_constant__ AdamwStep<float, bf16, float> args) { adamw(args); }
extern "C" __global__ void adamw_bf16_moments_f32_gradients_bf16(const __grid_constant__ AdamwStep<bf16, bf16, float> args) { adamw(args); }
