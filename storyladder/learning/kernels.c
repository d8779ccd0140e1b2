/* The pieces of a training step on a CPU that are no matrix products, each in one pass over its data.

   torch makes them of several passes through memory (GELU and its derivative, the mask and the softmax of attention, the
   masks of dropout), which on a CPU with fast bf16 products takes longer than the products. kernels.py compiles this
   file where there is a compiler; without one the same functions run as torch operations, the oracle of the tests.

   `half` says that an array holds bf16, else float32; sums are always float32. Every function runs on all threads; what
   one thread does is a function of its own whose `half` is a constant, or the compiler would not vectorise it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define TOKENS 32    /* tokens whose heads a thread moves at a time */
#define BLOCK 4096   /* elements that a thread takes at a time */

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

/* --- heads of attention: (B, T, S, H, D) to (S, B, H, T, D) and back; S is 3 for queries, keys and values, else 1 ---- */

INLINE void copy(char *to, const char *from, long bytes) {
    if (bytes < 64) { memcpy(to, from, bytes); return; }
    for (long i = 0; i < bytes - 64; i += 64) memcpy(to + i, from + i, 64);  /* a constant size takes one instruction */
    memcpy(to + bytes - 64, from + bytes - 64, 64);
}

/* `merge` is the way back; `bytes` are those of D elements. A few tokens at a time, whose rows stay in the cache. */
void move_heads(const char *from, char *to, long B, long T, long S, long H, long bytes, int merge) {
    #pragma omp parallel for schedule(static) collapse(2)
    for (long b = 0; b < B; b++)
        for (long first = 0; first < T; first += TOKENS)
            for (long i = 0; i < S * H; i++)
                for (long t = first; t < smaller(first + TOKENS, T); t++) {
                    long mixed = ((b * T + t) * S * H + i) * bytes;
                    long apart = (((i / H * B + b) * H + i % H) * T + t) * bytes;
                    copy(to + (merge ? mixed : apart), from + (merge ? apart : mixed), bytes);
                }
}

/* --- sums of the columns of x (rows, C), ROWS rows at a time: partials (rows / ROWS rounded up, C) ----------------- */

#define ROWS 128  /* fixed, so that the sums do not depend on the number of threads */

INLINE void add_rows(const void *x, float *sums, long rows, long C, int half) {
    memset(sums, 0, C * sizeof *sums);
    long r = 0;
    for (; r + 4 <= rows; r += 4) {
        const void *a = at(x, r * C, half), *b = at(a, C, half), *c = at(b, C, half), *d = at(c, C, half);
        #pragma omp simd
        for (long j = 0; j < C; j++) sums[j] += (get(a, j, half) + get(b, j, half)) + (get(c, j, half) + get(d, j, half));
    }
    for (; r < rows; r++) {
        #pragma omp simd
        for (long j = 0; j < C; j++) sums[j] += get(x, r * C + j, half);
    }
}

void column_sums(const void *x, float *partials, long rows, long C, int half) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r += ROWS) {
        long n = smaller(ROWS, rows - r);
        if (half) add_rows(at(x, r * C, 1), partials + r / ROWS * C, n, C, 1);
        else add_rows(at(x, r * C, 0), partials + r / ROWS * C, n, C, 0);
    }
}

/* --- LayerNorm of float32 x (rows, C); `moments` (rows, 2) are mean and 1 / deviation ------------------------------ */

INLINE void norm_row(const float *x, const float *weight, const float *bias, void *y, float *moments, long C, float eps,
                     int half) {
    float sum = 0.0f, square = 0.0f;
    #pragma omp simd reduction(+ : sum)
    for (long j = 0; j < C; j++) sum += x[j];
    float mean = sum / C;
    #pragma omp simd reduction(+ : square)
    for (long j = 0; j < C; j++) square += (x[j] - mean) * (x[j] - mean);
    float inverse = 1.0f / sqrtf(square / C + eps);
    #pragma omp simd
    for (long j = 0; j < C; j++) put(y, j, (x[j] - mean) * inverse * weight[j] + bias[j], half);
    moments[0] = mean, moments[1] = inverse;
}

void layer_norm(const float *x, const float *weight, const float *bias, void *y, float *moments, long rows, long C,
                float eps, int half) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        if (half) norm_row(x + r * C, weight, bias, at(y, r * C, 1), moments + 2 * r, C, eps, 1);
        else norm_row(x + r * C, weight, bias, at(y, r * C, 0), moments + 2 * r, C, eps, 0);
}

INLINE void norm_row_back(const void *grad, const float *x, const float *weight, float mean, float inverse,
                          float *grad_x, float *grad_weight, float *grad_bias, long C, int half) {
    float dot = 0.0f, sum = 0.0f;
    #pragma omp simd reduction(+ : dot, sum)
    for (long j = 0; j < C; j++) {
        float g = get(grad, j, half), normed = (x[j] - mean) * inverse;
        grad_weight[j] += g * normed;
        grad_bias[j] += g;
        dot += g * weight[j] * normed;
        sum += g * weight[j];
    }
    dot /= C, sum /= C;
    #pragma omp simd
    for (long j = 0; j < C; j++)
        grad_x[j] = inverse * (get(grad, j, half) * weight[j] - sum - (x[j] - mean) * inverse * dot);
}

/* The gradient of x, and those of weight and bias as partials (rows / ROWS rounded up, 2, C) over ROWS rows each. */
void layer_norm_back(const void *grad, const float *x, const float *weight, const float *moments, float *grad_x,
                     float *partials, long rows, long C, int half) {
    #pragma omp parallel for schedule(static)
    for (long first = 0; first < rows; first += ROWS) {
        float *sums = partials + first / ROWS * 2 * C;
        memset(sums, 0, 2 * C * sizeof *sums);
        for (long r = first; r < smaller(first + ROWS, rows); r++) {
            float mean = moments[2 * r], inverse = moments[2 * r + 1];
            const float *row = x + r * C;
            if (half) norm_row_back(at(grad, r * C, 1), row, weight, mean, inverse, grad_x + r * C, sums, sums + C, C, 1);
            else norm_row_back(at(grad, r * C, 0), row, weight, mean, inverse, grad_x + r * C, sums, sums + C, C, 0);
        }
    }
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

/* Where there are `exps` (V), the exponentials of the sum are kept there for the gradient; else they are taken twice. */
INLINE float entropy_row(void *row, long target, long V, float last_offset, int gradient, float *exps, int half) {
    float last = get(row, V - 1, half) + last_offset, top = last, sum = 0.0f;
    #pragma omp simd reduction(max : top)
    for (long j = 0; j < V - 1; j++) top = get(row, j, half) > top ? get(row, j, half) : top;
    if (exps) {
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < V - 1; j++) sum += exps[j] = exp_(get(row, j, half) - top);
    } else {
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < V - 1; j++) sum += exp_(get(row, j, half) - top);
    }
    sum += exp_(last - top);
    float log_sum = top + logf(sum), inverse = 1.0f / sum, right = get(row, target, half);
    float loss = log_sum - right;  /* the last row as a target is one of the tokens behind it: without the offset */
    if (!gradient) return loss;
    if (target == V - 1) right = last;
    if (exps) {
        #pragma omp simd
        for (long j = 0; j < V - 1; j++) put(row, j, exps[j] * inverse, half);
    } else {
        #pragma omp simd
        for (long j = 0; j < V - 1; j++) put(row, j, exp_(get(row, j, half) - log_sum), half);
    }
    put(row, V - 1, exp_(last - log_sum), half);
    put(row, target, exp_(right - log_sum) - 1.0f, half);
    return loss;
}

void cross_entropy(void *scores, const int64_t *targets, float *losses, long rows, long V, float last_offset,
                   int gradient, int half) {
    #pragma omp parallel
    {
        float *exps = half && gradient ? malloc(V * sizeof *exps) : NULL;  /* too much for a thread's stack */
        #pragma omp for schedule(static)
        for (long r = 0; r < rows; r++)
            losses[r] = half ? entropy_row(at(scores, r * V, 1), targets[r], V, last_offset, gradient, exps, 1)
                             : entropy_row(at(scores, r * V, 0), targets[r], V, last_offset, gradient, NULL, 0);
        free(exps);
    }
}
