/* Vectors and elementary functions of the native backend. Everything is float32 and channels-last.
 *
 * Threads take runs of neighbouring work items (a static schedule): what is prefetched past a row of one item is the next
 * item's, and threads that write side by side would take those lines from each other (7x slower on two cores).
 *
 * The vectors are those of GCC and Clang, so that one source serves AVX-512, AVX2, NEON and plain machines; only exp2 and
 * the larger of two vectors have an AVX-512 form of their own.
 */
#ifndef STM_NATIVE_H
#define STM_NATIVE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum {
    SPAN = 64,           /* channels of a narrow work item: rows of 256 bytes, which stay in the cache while time is walked */
    VECS = SPAN / LANES, /* vectors of it */
};

/* A tensor (K, B, L, channels) with its strides in floats; the last stride is 1. Absent: data is NULL. */
typedef struct {
    float *data;
    int64_t k, b, l;
} view;

INLINE vec fill(float x) { return x - (vec){0}; }

INLINE vec load(const float *p, int count) {
    if (count == LANES) return *(const loose *)p;
    vec v = {0};
    memcpy(&v, p, 4 * (size_t)count);
    return v;
}

INLINE void store(float *p, vec v, int count) {
    if (count == LANES)
        *(loose *)p = v;
    else
        memcpy(p, &v, 4 * (size_t)count);
}

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* The channels of a wide work item, `most` at most: long rows are read faster, but each thread needs as many items as the others. */
INLINE int64_t wide_span(int64_t batch, int64_t E, int64_t most, int64_t threads) {
    int64_t spans = ceiling(E, most < SPAN ? SPAN : most);
    while (batch * spans % threads && batch * spans < 8 * threads && spans * SPAN < E) spans++;
    return ceiling(ceiling(E, LANES), spans) * LANES;
}

/* How many channels of E a vector from channel c on holds. */
INLINE int lanes(int64_t E, int64_t c) { return E - c < LANES ? (int)(E - c) : LANES; }

/* Ask for a row of a work item before it is needed: the next row is in another page, where no hardware looks ahead. */
INLINE void expect(const float *row, int64_t n_vecs) {
    for (int64_t v = 0; v < n_vecs; v++) __builtin_prefetch(row + v * LANES);
}

INLINE float sum(vec v) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

#if defined(__AVX512F__)
INLINE vec larger(vec x, vec y) { return _mm512_max_ps(y, x); } /* NaN in x stays, as below */
#else
INLINE vec larger(vec x, vec y) { return choose(x < y, y, x); }
#endif

/* 2^x. What is left of x after rounding goes through a polynomial that is exact at 0 and minimax in relative error of
 * (2^f - 1) / f, so that slow decays, f near 0, keep their full precision over long walks. */
#if defined(__AVX512F__)
static const float sixteenths[16] __attribute__((aligned(64))) = {
    0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
    0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f, 0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f,
}; /* 2^(j/16) */

/* Rounded to sixteenths, whose fraction is looked up; |f| <= 1/32, error 1.1e-7. The sums are kept from fusing with the product that
 * x may be: they have ports of their own. */
INLINE vec exp2v(vec x) {
    vec magic = fill(0x1.8p19f), shifted = _mm512_add_round_ps(x, magic, _MM_FROUND_CUR_DIRECTION); /* sixteenths in its lowest bits */
    vec k = _mm512_sub_round_ps(shifted, magic, _MM_FROUND_CUR_DIRECTION), f = _mm512_sub_round_ps(x, k, _MM_FROUND_CUR_DIRECTION);
    vec root = _mm512_permutexvar_ps((__m512i)shifted, *(const vec *)sixteenths);
    vec p = 0.0555041087f * f + 0.240233551f;
    p = p * f + 0.693147181f;
    return _mm512_scalef_ps(p * f * root + root, k);
}
#else
/* Rounded to integers; |f| <= 1/2, error 4.3e-7. */
INLINE vec exp2v(vec x) {
    x = larger(x, fill(-127)); /* 2^-127 is made 0, and 2^128 infinity, by the exponent's bits */
    x = choose(x > fill(128), fill(128), x);
    vec shifted = x + 0x1.8p23f, k = shifted - 0x1.8p23f, f = x - k; /* k in the lowest bits of shifted */
    vec p = 0.00133335386f * f + 0.00966624542f;
    p = p * f + 0.0555050021f;
    p = p * f + 0.240223513f;
    p = p * f + 0.693147144f;
    p = p * f + 1;
    return p * (vec)(((ivec)shifted << 23) + 0x3f800000);
}
#endif

INLINE vec expv(vec x) { return exp2v(1.44269504f * x); }

INLINE vec sigmoid(vec x) { return 1 / (1 + expv(-x)); }

INLINE vec absolute(vec x) { return (vec)((ivec)x & 0x7fffffff); }

/* log(1 + exp(x)) = max(x, 0) + log(1 + w) with w = exp(-|x|) and a polynomial, minimax in relative error (1.9e-7) on [0, 1]:
 * a very negative x keeps its precision. */
INLINE vec softplus(vec x) {
    vec w = expv(-absolute(x));
    vec p = -0.00853920610f * w + 0.0440896232f;
    p = p * w - 0.107681701f;
    p = p * w + 0.177452406f;
    p = p * w - 0.244954625f;
    p = p * w + 0.332754797f;
    p = p * w - 0.499974054f;
    p = p * w + 0.999999806f;
    return larger(x, fill(0)) + p * w;
}

#endif
