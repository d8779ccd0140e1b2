/* The parts of a training step on a CPU that are not matmuls, each in one pass over its data.

   torch makes several passes through memory for GELU and its derivative, for the mask and the softmax of attention and
   for dropout masks; on a CPU with fast bf16 matmuls these take longer than the matmuls. kernels.py compiles this file
   if there is a compiler. Without one, the layers use torch operations, which the tests compare this file with.

   `is_bf16` says that an array holds bf16, otherwise it holds float32; sums are always float32. Every function uses all
   threads. What one thread does is an inline function, called with a constant `is_bf16`: otherwise the compiler would
   not vectorize it. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define TOKENS 32   /* a thread moves the heads of this many tokens at a time */
#define BLOCK 4096  /* elements a thread processes at a time */
#define ROWS 128    /* rows per partial sum: fixed, so that sums do not depend on the number of threads */

INLINE float from_bits(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
INLINE uint32_t to_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

INLINE float get(const void *array, long i, int is_bf16) {
    return is_bf16 ? from_bits((uint32_t)((const uint16_t *)array)[i] << 16) : ((const float *)array)[i];
}

INLINE void put(void *array, long i, float x, int is_bf16) {
    if (is_bf16) {  /* round to nearest, ties to even; NaN stays NaN */
        uint32_t bits = to_bits(x);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        ((uint16_t *)array)[i] = x == x ? rounded : 0x7fc0;
    } else {
        ((float *)array)[i] = x;
    }
}

INLINE void *at(const void *array, long i, int is_bf16) { return (char *)array + i * (is_bf16 ? 2 : 4); }
INLINE long smaller(long a, long b) { return a < b ? a : b; }

/* exp(x) with a relative error of about 2e-7: 2^n times a polynomial (Cephes). NaN stays NaN: the step must see it. */
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

/* --- GELU in its tanh form, and its derivative at the same point ------------------------------------------------- */

INLINE void gelu_block(const void *x, void *y, void *slope, long n, int is_bf16) {
    #pragma omp simd
    for (long i = 0; i < n; i++) {
        float v = get(x, i, is_bf16), square = v * v;
        square = square > 1e6f ? 1e6f : square;  /* beyond, the result is 0 or v, and v^3 would overflow */
        float h = 1.0f / (1.0f + exp_(v * (-1.5957691216f - 0.0713548163f * square)));  /* (1 + tanh u) / 2 */
        float du = v * (1.5957691216f + 0.2140644488f * square);                        /* 2 v du/dv */
        put(y, i, v * h, is_bf16);
        put(slope, i, h + h * (1.0f - h) * du, is_bf16);
    }
}

void gelu(const void *x, void *y, void *slope, long n, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i += BLOCK) {
        long m = smaller(BLOCK, n - i);
        if (is_bf16) gelu_block(at(x, i, 1), at(y, i, 1), at(slope, i, 1), m, 1);
        else gelu_block(at(x, i, 0), at(y, i, 0), at(slope, i, 0), m, 0);
    }
}

/* --- causal softmax of scores (rows, T), in place: row i covers columns 0 to i, later columns become 0 ------------ */

INLINE void softmax_row(void *row, float *values, long seen, long T, float scale, int is_bf16) {
    long whole = smaller((seen + 15) / 16 * 16, T);  /* whole vectors: a scalar loop over the rest takes longer */
    float top = -INFINITY, sum = 0.0f;
    #pragma omp simd reduction(max : top)
    for (long j = 0; j < whole; j++) {
        values[j] = j < seen ? get(row, j, is_bf16) * scale : -INFINITY;
        top = values[j] > top ? values[j] : top;
    }
    #pragma omp simd reduction(+ : sum)
    for (long j = 0; j < whole; j++) sum += values[j] = exp_(values[j] - top);
    float inverse = 1.0f / sum;
    #pragma omp simd
    for (long j = 0; j < whole; j++) put(row, j, values[j] * inverse, is_bf16);
    memset(at(row, seen, is_bf16), 0, (T - seen) * (is_bf16 ? 2 : 4));
}

void causal_softmax(void *scores, long rows, long T, float scale, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++) {
        float values[T];
        if (is_bf16) softmax_row(at(scores, r * T, 1), values, r % T + 1, T, scale, 1);
        else softmax_row(at(scores, r * T, 0), values, r % T + 1, T, scale, 0);
    }
}

/* Backward, in place: `grad` is the gradient of the probabilities, then that of the unscaled scores. */
INLINE void softmax_row_backward(const void *probs, void *grad, long seen, long T, float scale, int is_bf16) {
    float dot = 0.0f;
    #pragma omp simd reduction(+ : dot)
    for (long j = 0; j < seen; j++) dot += get(probs, j, is_bf16) * get(grad, j, is_bf16);
    #pragma omp simd
    for (long j = 0; j < seen; j++)
        put(grad, j, scale * get(probs, j, is_bf16) * (get(grad, j, is_bf16) - dot), is_bf16);
    memset(at(grad, seen, is_bf16), 0, (T - seen) * (is_bf16 ? 2 : 4));
}

void causal_softmax_backward(const void *probs, void *grad, long rows, long T, float scale, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        if (is_bf16) softmax_row_backward(at(probs, r * T, 1), at(grad, r * T, 1), r % T + 1, T, scale, 1);
        else softmax_row_backward(at(probs, r * T, 0), at(grad, r * T, 0), r % T + 1, T, scale, 0);
}

/* --- attention heads: (B, T, S, H, D) to (S, B, H, T, D) and back; S is 3 for queries, keys and values, else 1 ---- */

INLINE void copy(char *to, const char *from, long bytes) {
    if (bytes < 64) { memcpy(to, from, bytes); return; }
    for (long i = 0; i < bytes - 64; i += 64) memcpy(to + i, from + i, 64);  /* constant size: one instruction */
    memcpy(to + bytes - 64, from + bytes - 64, 64);
}

/* `merge` is the inverse; D elements take `bytes`. A few tokens at a time, so that their rows stay in the cache. */
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

/* --- LayerNorm of float32 x (rows, C); `moments` (rows, 2) hold mean and 1 / std ---------------------------------- */

INLINE void norm_row(const float *x, const float *weight, const float *bias, void *y, float *moments, long C, float eps,
                     int is_bf16) {
    float sum = 0.0f, square = 0.0f;
    #pragma omp simd reduction(+ : sum)
    for (long j = 0; j < C; j++) sum += x[j];
    float mean = sum / C;
    #pragma omp simd reduction(+ : square)
    for (long j = 0; j < C; j++) square += (x[j] - mean) * (x[j] - mean);
    float inverse = 1.0f / sqrtf(square / C + eps);
    #pragma omp simd
    for (long j = 0; j < C; j++) put(y, j, (x[j] - mean) * inverse * weight[j] + bias[j], is_bf16);
    moments[0] = mean, moments[1] = inverse;
}

void layer_norm(const float *x, const float *weight, const float *bias, void *y, float *moments, long rows, long C,
                float eps, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long r = 0; r < rows; r++)
        if (is_bf16) norm_row(x + r * C, weight, bias, at(y, r * C, 1), moments + 2 * r, C, eps, 1);
        else norm_row(x + r * C, weight, bias, at(y, r * C, 0), moments + 2 * r, C, eps, 0);
}

INLINE void norm_row_backward(const void *grad, const float *x, const float *weight, float mean, float inverse,
                          float *grad_x, float *grad_weight, float *grad_bias, long C, int is_bf16) {
    float dot = 0.0f, sum = 0.0f;
    #pragma omp simd reduction(+ : dot, sum)
    for (long j = 0; j < C; j++) {
        float g = get(grad, j, is_bf16), normed = (x[j] - mean) * inverse;
        grad_weight[j] += g * normed;
        grad_bias[j] += g;
        dot += g * weight[j] * normed;
        sum += g * weight[j];
    }
    dot /= C, sum /= C;
    #pragma omp simd
    for (long j = 0; j < C; j++)
        grad_x[j] = inverse * (get(grad, j, is_bf16) * weight[j] - sum - (x[j] - mean) * inverse * dot);
}

/* Gradients: of x; of weight and bias as `partials` (rows / ROWS rounded up, 2, C), each the sum over ROWS rows. */
void layer_norm_backward(const void *grad, const float *x, const float *weight, const float *moments, float *grad_x,
                     float *partials, long rows, long C, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long first = 0; first < rows; first += ROWS) {
        float *sums = partials + first / ROWS * 2 * C;
        memset(sums, 0, 2 * C * sizeof *sums);
        for (long r = first; r < smaller(first + ROWS, rows); r++) {
            float mean = moments[2 * r], inverse = moments[2 * r + 1];
            const float *row = x + r * C;
            float *out = grad_x + r * C;
            if (is_bf16) norm_row_backward(at(grad, r * C, 1), row, weight, mean, inverse, out, sums, sums + C, C, 1);
            else norm_row_backward(at(grad, r * C, 0), row, weight, mean, inverse, out, sums, sums + C, C, 0);
        }
    }
}

/* --- dropout: whether element i is kept is a hash of i and two keys, so backward needs no stored mask ------------- */

typedef struct { uint32_t first, second, threshold; float scale; } Dropout;

INLINE float factor(Dropout d, uint32_t i) {  /* lowbias32 with a second key in the middle */
    uint32_t h = i * 0x9e3779b9u + d.first;
    h ^= h >> 16; h *= 0x7feb352du; h ^= d.second;
    h ^= h >> 15; h *= 0x846ca68bu;
    h ^= h >> 16;
    return h >= d.threshold ? d.scale : 0.0f;
}

/* out = x + dropped(y), or dropped(y) if x is NULL; element i of the block is element first + i of the array */
INLINE void drop_block(const float *x, const void *y, void *out, long first, long n, Dropout d, int y_is_bf16,
                       int is_bf16) {
    if (x) {
        #pragma omp simd
        for (long i = 0; i < n; i++) put(out, i, x[i] + get(y, i, y_is_bf16) * factor(d, first + i), is_bf16);
    } else {
        #pragma omp simd
        for (long i = 0; i < n; i++) put(out, i, get(y, i, y_is_bf16) * factor(d, first + i), is_bf16);
    }
}

/* float32 out = x + dropped(y) */
void add_dropped(const float *x, const void *y, float *out, long n, const Dropout *d, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i += BLOCK)
        if (is_bf16) drop_block(x + i, at(y, i, 1), out + i, i, smaller(BLOCK, n - i), *d, 1, 0);
        else drop_block(x + i, at(y, i, 0), out + i, i, smaller(BLOCK, n - i), *d, 0, 0);
}

/* out = dropped(y) for float32 y: dropout alone, and the backward of add_dropped */
void dropped(const float *y, void *out, long n, const Dropout *d, int is_bf16) {
    #pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i += BLOCK)
        if (is_bf16) drop_block(0, y + i, at(out, i, 1), i, smaller(BLOCK, n - i), *d, 0, 1);
        else drop_block(0, y + i, at(out, i, 0), i, smaller(BLOCK, n - i), *d, 0, 0);
}

/* --- cross-entropy of scores (rows, V), in nats; with `gradient`, the scores are overwritten with their gradient -- */

/* `exps` (V), unless NULL, keeps the exponentials of the sum for the gradient; otherwise they are computed twice. */
INLINE float entropy_row(void *row, long target, long V, float last_offset, int gradient, float *exps, int is_bf16) {
    float last = get(row, V - 1, is_bf16) + last_offset, top = last, sum = 0.0f;
    #pragma omp simd reduction(max : top)
    for (long j = 0; j < V - 1; j++) top = get(row, j, is_bf16) > top ? get(row, j, is_bf16) : top;
    if (exps) {
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < V - 1; j++) sum += exps[j] = exp_(get(row, j, is_bf16) - top);
    } else {
        #pragma omp simd reduction(+ : sum)
        for (long j = 0; j < V - 1; j++) sum += exp_(get(row, j, is_bf16) - top);
    }
    sum += exp_(last - top);
    float log_sum = top + logf(sum), inverse = 1.0f / sum, right = get(row, target, is_bf16);
    float loss = log_sum - right;  /* a target in the last column is one token of many: it gets no offset */
    if (!gradient) return loss;
    if (target == V - 1) right = last;
    if (exps) {
        #pragma omp simd
        for (long j = 0; j < V - 1; j++) put(row, j, exps[j] * inverse, is_bf16);
    } else {
        #pragma omp simd
        for (long j = 0; j < V - 1; j++) put(row, j, exp_(get(row, j, is_bf16) - log_sum), is_bf16);
    }
    put(row, V - 1, exp_(last - log_sum), is_bf16);
    put(row, target, exp_(right - log_sum) - 1.0f, is_bf16);
    return loss;
}

void cross_entropy(void *scores, const int64_t *targets, float *losses, long rows, long V, float last_offset,
                   int gradient, int is_bf16) {
    #pragma omp parallel
    {
        float *exps = is_bf16 && gradient ? malloc(V * sizeof *exps) : NULL;  /* too large for a thread's stack */
        #pragma omp for schedule(static)
        for (long r = 0; r < rows; r++)
            losses[r] = is_bf16 ? entropy_row(at(scores, r * V, 1), targets[r], V, last_offset, gradient, exps, 1)
                             : entropy_row(at(scores, r * V, 0), targets[r], V, last_offset, gradient, NULL, 0);
        free(exps);
    }
}
