/* Vectors and elementary functions of the native backend. Everything is float32 and channels-last.
 *
 * Threads take runs of neighbouring work items (a static schedule). Prefetching past a row of one item fetches the next item's
 * row: if another thread writes that one, the two threads take its cache lines from each other (7x slower on two cores).
 *
 * COARSE makes exponentials and logarithms of fewer terms, for models whose products are rounded to bfloat16 or int8 anyway.
 *
 * The vector types are those of GCC and Clang, so that one source serves AVX-512, AVX2, NEON and plain machines. Only exp2 and
 * `larger` have forms of their own for some of them.
 */
#ifndef STM_NATIVE_H
#define STM_NATIVE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
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
    SPAN = 64,           /* channels of a narrow work item: rows of 256 bytes, which stay in the cache during a walk */
    VECS = SPAN / LANES, /* vectors of it */
};

/* A tensor (K, B, L, channels) with its strides in elements; the last stride is 1. An absent tensor has NULL data. Elements are floats,
 * or `outer` where a function says so. */
typedef struct {
    float *data;
    int64_t k, b, l;
} view;

/* A vector of one value. The subtraction is how GCC spreads a scalar; + would turn -0 into 0. */
INLINE vec fill(float x) { return x - (vec){0}; }

/* The first `count` floats at p, and zeros in the other lanes. A constant count of LANES is one instruction. */

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

/* What a matrix product writes and reads: float, or bfloat16 in the builds for models that have it (BF16). All else is float32. */
#ifdef BF16
typedef uint16_t outer;
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));

INLINE vec load_outer(const outer *p, int count) {
    halves v = {0};
    memcpy(&v, p, 2 * (size_t)count);
    return (vec)(__builtin_convertvector(v, words) << 16);
}

/* To the nearest bfloat16; of two, the even one. */
INLINE void store_outer(outer *p, vec v, int count) {
    words bits = (words)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, number = (words)(v == v);
    halves out = __builtin_convertvector((number & rounded) | (~number & 0x7fc0), halves); /* rounding could make NaN a number */
    memcpy(p, &out, 2 * (size_t)count);
}
#else
typedef float outer;

INLINE vec load_outer(const outer *p, int count) { return load(p, count); }

INLINE void store_outer(outer *p, vec v, int count) { store(p, v, count); }
#endif

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE int64_t ceiling(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Returns the channels of a wide work item, at most `most`. Long rows are read faster, but every thread needs the same number of
 * items: so spans get narrower until the items divide evenly, or are many enough for the rest not to matter. */
INLINE int64_t wide_span(int64_t batch, int64_t E, int64_t most, int64_t threads) {
    if (E < 1) return SPAN; /* no channels: no items, and nothing to divide by */
    int64_t spans = ceiling(E, most < SPAN ? SPAN : most);
    while (batch * spans % threads && batch * spans < 8 * threads && spans * SPAN < E) spans++;
    return ceiling(ceiling(E, LANES), spans) * LANES;
}

/* Returns how many of the E channels are in the vector that begins at channel c. */
INLINE int lanes(int64_t E, int64_t c) { return E - c < LANES ? (int)(E - c) : LANES; }

/* Prefetches a row of a work item. The next row may be in another page, where the hardware's prefetcher does not look. */
INLINE void expect(const outer *row, int64_t n_vecs) {
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
#elif defined(__AVX__)
INLINE vec larger(vec x, vec y) { return _mm256_max_ps(y, x); } /* the compiler makes two instructions of the form below */
INLINE vec smaller(vec x, vec y) { return _mm256_min_ps(y, x); }
#else
INLINE vec larger(vec x, vec y) { return choose(x < y, y, x); }
INLINE vec smaller(vec x, vec y) { return choose(x > y, y, x); }
#endif

/* 2^x = 2^k 2^f with k the rounded x. The polynomial of the remainder f is exact at 0 and minimax in the relative error of
 * (2^f - 1) / f. So slow decays, with f near 0, keep their full precision over long walks. */
#if defined(__AVX512F__)
static const float sixteenths[16] __attribute__((aligned(64))) = {
    0x1.000000p+0f, 0x1.0b5586p+0f, 0x1.172b84p+0f, 0x1.2387a6p+0f, 0x1.306fe0p+0f, 0x1.3dea64p+0f, 0x1.4bfdaep+0f, 0x1.5ab07ep+0f,
    0x1.6a09e6p+0f, 0x1.7a1148p+0f, 0x1.8ace54p+0f, 0x1.9c4918p+0f, 0x1.ae89fap+0f, 0x1.c199bep+0f, 0x1.d5818ep+0f, 0x1.ea4afap+0f,
}; /* 2^(j/16) */

/* k in sixteenths, whose fraction is looked up; |f| <= 1/32, relative error 1.1e-7. Intrinsics keep the compiler from fusing these
 * sums with the product that x may be: sums have execution ports of their own. */
INLINE vec exp2v(vec x) {
    vec magic = fill(0x1.8p19f), shifted = _mm512_add_round_ps(x, magic, _MM_FROUND_CUR_DIRECTION); /* sixteenths in its lowest bits */
    vec k = _mm512_sub_round_ps(shifted, magic, _MM_FROUND_CUR_DIRECTION), f = _mm512_sub_round_ps(x, k, _MM_FROUND_CUR_DIRECTION);
    vec root = _mm512_permutexvar_ps((__m512i)shifted, *(const vec *)sixteenths);
#ifdef COARSE
    vec p = 0.240226507f * f + 0.693174243f; /* relative error 1e-6; (2^f - 1) / f: 3.9e-5 */
#else
    vec p = 0.0555041087f * f + 0.240233551f;
    p = p * f + 0.693147181f;
#endif
    return _mm512_scalef_ps(p * f * root + root, k);
}
#else
/* A float of at least 2^23 has no fraction: the sum x + ROUND rounds x to k, and its lowest bits are k as an integer. */
#define ROUND 0x1.8p23f

/* 2^f for |f| <= 1/2, relative error 4.3e-7; COARSE 1.5e-4, and 4.3e-4 that of (2^f - 1) / f. */
INLINE vec fraction_exp2(vec f) {
#ifdef COARSE
    vec p = 0.0555039688f * f + 0.242028864f;
    p = p * f + 0.693178305f;
#else
    vec p = 0.00133335386f * f + 0.00966624542f;
    p = p * f + 0.0555050021f;
    p = p * f + 0.240223513f;
    p = p * f + 0.693147144f;
#endif
    return p * f + 1;
}

/* Beyond the bounds the exponent's bits would wrap. At them k alone is the result: 0, and infinity. */
INLINE vec exp2v(vec x) {
    x = smaller(larger(x, fill(-127)), fill(128));
    vec shifted = x + ROUND, k = shifted - ROUND;
    return (vec)((ivec)fraction_exp2(x - k) + ((ivec)shifted << 23)); /* k is added to the exponent */
}
#endif

INLINE vec expv(vec x) { return exp2v(1.44269504f * x); }

INLINE vec sigmoid(vec x) { return 1 / (1 + expv(-x)); }

INLINE vec absolute(vec x) { return (vec)((ivec)x & 0x7fffffff); }

/* log(1 + exp(x)) = max(x, 0) + log(1 + w) with w = exp(-|x|). The polynomial of log(1 + w) is minimax in relative error (1.9e-7;
 * COARSE 5.7e-5) on [0, 1], so a very negative x, a very small Delta, keeps its precision. */
INLINE vec softplus(vec x) {
    vec w = expv(-absolute(x));
#ifdef COARSE
    vec p = 0.0413472657f * w - 0.157427149f;
    p = p * w + 0.306300889f;
    p = p * w - 0.496977785f;
    p = p * w + 0.999943279f;
#else
    vec p = -0.00853920610f * w + 0.0440896232f;
    p = p * w - 0.107681701f;
    p = p * w + 0.177452406f;
    p = p * w - 0.244954625f;
    p = p * w + 0.332754797f;
    p = p * w - 0.499974054f;
    p = p * w + 0.999999806f;
#endif
    return larger(x, fill(0)) + p * w;
}

#endif
