/* The pieces of a training step on a CPU that are no matrix products, each in one pass over its data.

   torch makes them of several passes through memory (GELU and its derivative, the mask and the softmax of attention, the
   masks of dropout), which on a CPU with fast bf16 products takes longer than the products. kernels.py compiles this
   file where there is a compiler; without one the same functions run as torch operations, the oracle of the tests.

   `half` says that an array holds bf16, else float32; sums are always float32. Every function runs on all threads; what
   one thread does is a function of its own whose `half` is a constant, or the compiler would not vectorise it. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define BLOCK 4096  /* elements that a thread takes at a time */

INLINE float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

INLINE float get(const void *array, long i, int half) {
    return half ? from_bits((uint32_t)((const uint16_t *)array)[i] << 16) : ((const float *)array)[i];
}

INLINE void put(void *array, long i, float x, int half) {
    if (half) {  /* round to nearest, ties to even; a NaN stays one */
        uint32_t bits = to_bits(x);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        ((uint16_t *)array)[i] = x == x ? rounded : 0x7fc0;
    } else {
        ((float *)array)[i] = x;
    }
}

INLINE void *at(const void *array, long i, int half) { return (char *)array + i * (half ? 2 : 4); }
INLINE long smaller(long a, long b) { return a < b ? a : b; }

/* exp(x) to about 2e-7: 2^n times a polynomial (Cephes). A NaN goes through, because the step must see it. */
INLINE float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * from_bits((uint32_t)((int32_t)n + 127) << 23);
}

/* --- GELU in its tanh form, and its slope at the same point ------------------------------------------------------ */

INLINE void gelu_block(const void *x, void *y, void *slope, long n, int half) {
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        float v = get(x, i, half), square = v * v;
        square = square > 1e6f ? 1e6f : square;  /* all is 0 or 1 out there, and its cube would be infinite */
        float h = 1.0f / (1.0f + exp_(v * (-1.5957691216f - 0.0713548163f * square)));  /* (1 + tanh u) / 2 */
        float du = v * (1.5957691216f + 0.2140644488f * square);                        /* 2 v du/dv */
        put(y, i, v * h, half);
        put(slope, i, h + h * (1.0f - h) * du, half);
    }
}

void gelu(const void *x, void *y, void *slope, long n, int half) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i += BLOCK) {
        long m = smaller(BLOCK, n - i);
        if (half) gelu_block(at(x, i, 1), at(y, i, 1), at(slope, i, 1), m, 1);
        else gelu_block(at(x, i, 0), at(y, i, 0), at(slope, i, 0), m, 0);
    }
}

/* --- softmax of causal scores (rows, T), in place: row i of T sees the columns up to i, the others become 0 ------- */

INLINE void softmax_row(void *row, float *values, long seen, long T, float scale, int half) {
    long whole = smaller((seen + 15) / 16 * 16, T);  /* whole vectors: loops over single leftovers take longer */
    float top = -INFINITY, sum = 0.0f;
    #pragma omp simd reduction(max : top)
    for (long j = 0; j < whole; j++) {
        values[j] = j < seen ? get(row, j, half) * scale : -INFINITY;
        top = values[j] > top ? values[j] : top;
    }
    #pragma omp simd reduction(+ : sum)
    for (long j = 0; j < whole; j++) sum += values[j] = exp_(values[j] - top);
    float inverse = 1.0f / sum;
    #pragma omp simd
    for (long j = 0; j < whole; j++) put(row, j, values[j] * inverse, half);
    memset(at(row, seen, half), 0, (T - seen) * (half ? 2 : 4));
}

void causal_softmax(void *scores, long rows, long T, float scale, int half) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        float values[T];
        if (half) softmax_row(at(scores, r * T, 1), values, r % T + 1, T, scale, 1);
        else softmax_row(at(scores, r * T, 0), values, r % T + 1, T, scale, 0);
    }
}

/* The way back, in place: grad holds what arrives at the probabilities, then what goes to the unscaled scores. */
INLINE void softmax_row_back(const void *probs, void *grad, long seen, long T, float scale, int half) {
    float dot = 0.0f;
    #pragma omp simd reduction(+ : dot)
    for (long j = 0; j < seen; j++) dot += get(probs, j, half) * get(grad, j, half);
    #pragma omp simd
    for (long j = 0; j < seen; j++) put(grad, j, scale * get(probs, j, half) * (get(grad, j, half) - dot), half);
    memset(at(grad, seen, half), 0, (T - seen) * (half ? 2 : 4));
}

void causal_softmax_back(const void *probs, void *grad, long rows, long T, float scale, int half) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        if (half) softmax_row_back(at(probs, r * T, 1), at(grad, r * T, 1), r % T + 1, T, scale, 1);
        else softmax_row_back(at(probs, r * T, 0), at(grad, r * T, 0), r % T + 1, T, scale, 0);
}

/* --- dropout: whether element i stays is a hash of i and two keys, so that the way back needs no mask ------------- */

typedef struct { uint32_t first, second, threshold; float scale; } Dropout;

INLINE float factor(Dropout d, uint32_t i) {  /* lowbias32 with a second key in its middle */
    uint32_t h = i * 0x9e3779b9u + d.first;
    h ^= h >> 16; h *= 0x7feb352du; h ^= d.second;
    h ^= h >> 15; h *= 0x846ca68bu;
    h ^= h >> 16;
    return h >= d.threshold ? d.scale : 0.0f;
}

/* out = x + dropped(y), or dropped(y) where x is NULL; element i of the block is element i + first of the whole */
INLINE void drop_block(const float *x, const void *y, void *out, long first, long n, Dropout d, int y_half, int half) {
    if (x) {
        #pragma omp simd
        for (long i = 0; i < n; i++) put(out, i, x[i] + get(y, i, y_half) * factor(d, first + i), half);
    } else {
        #pragma omp simd
        for (long i = 0; i < n; i++) put(out, i, get(y, i, y_half) * factor(d, first + i), half);
    }
}

/* float32 out = x + dropped(y) */
void add_dropped(const float *x, const void *y, float *out, long n, const Dropout *d, int half) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i += BLOCK)
        if (half) drop_block(x + i, at(y, i, 1), out + i, i, smaller(BLOCK, n - i), *d, 1, 0);
        else drop_block(x + i, at(y, i, 0), out + i, i, smaller(BLOCK, n - i), *d, 0, 0);
}

/* out = dropped(y) of float32 y: dropout alone, and the way back of add_dropped */
void dropped(const float *y, void *out, long n, const Dropout *d, int half) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i += BLOCK)
        if (half) drop_block(0, y + i, at(out, i, 1), i, smaller(BLOCK, n - i), *d, 0, 1);
        else drop_block(0, y + i, at(out, i, 0), i, smaller(BLOCK, n - i), *d, 0, 0);
}

/* --- cross-entropy of scores (rows, V), in nats; with `gradient`, that of their sum is written over the scores --- */

INLINE float entropy_row(void *row, long target, long V, float last_offset, int gradient, int half) {
    float last = get(row, V - 1, half) + last_offset, top = last, sum = 0.0f;
    #pragma omp simd reduction(max : top)
    for (long j = 0; j < V - 1; j++) top = get(row, j, half) > top ? get(row, j, half) : top;
    #pragma omp simd reduction(+ : sum)
    for (long j = 0; j < V - 1; j++) sum += exp_(get(row, j, half) - top);
    float log_sum = top + logf(sum + exp_(last - top)), right = get(row, target, half);
    float loss = log_sum - right;  /* the last row as a target is one of the tokens behind it: without the offset */
    if (!gradient) return loss;
    if (target == V - 1) right = last;
    #pragma omp simd
    for (long j = 0; j < V - 1; j++) put(row, j, exp_(get(row, j, half) - log_sum), half);
    put(row, V - 1, exp_(last - log_sum), half);
    put(row, target, exp_(right - log_sum) - 1.0f, half);
    return loss;
}

void cross_entropy(void *scores, const int64_t *targets, float *losses, long rows, long V, float last_offset,
                   int gradient, int half) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        losses[r] = half ? entropy_row(at(scores, r * V, 1), targets[r], V, last_offset, gradient, 1)
                         : entropy_row(at(scores, r * V, 0), targets[r], V, last_offset, gradient, 0);
}
