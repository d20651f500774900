/* The product of float rows with int8 weights: out (K, rows, width) = x (K, rows, E) weight (K, width, E)^T. Definition: `product` of
 * stm/model/quantized.py, whose bits this gives.
 *
 * A row becomes int8 when it is laid out for the product, with a scale of its own, and sums become floats when a tile is written. So
 * neither the int8 rows nor the int32 sums of a whole product are ever in memory.
 *
 * A vector of weights holds GROUP neighbours along E for each of LANES columns, and one instruction adds their products with GROUP
 * values of a row to LANES sums. With VNNI the instruction takes bytes, of which one factor is unsigned: the weights, plus OFFSET.
 * Without it bytes become pairs of 16 bits, a panel of columns at a time, and what AVX2 multiplies is twice what it does in floats.
 */
#include "native.h"

#include <math.h>

typedef int16_t pairs __attribute__((vector_size(4 * LANES)));

#if defined(__AVX512VNNI__)
enum { GROUP = 4, OFFSET = 128, ROWS = 12, VECTORS = 2 }; /* 24 sums of 32 registers */
typedef int8_t narrow;                                    /* a value of a row */
INLINE ivec dot(ivec sums, ivec weights, ivec row) { return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)row); }
#else
enum { GROUP = 2, OFFSET = 0, ROWS = 6, VECTORS = 2 }; /* 12 sums of 16 registers */
typedef int16_t narrow;
#if defined(__AVX512BW__)
INLINE ivec dot(ivec sums, ivec weights, ivec row) { return sums + (ivec)_mm512_madd_epi16((__m512i)weights, (__m512i)row); }
#elif defined(__AVX2__)
INLINE ivec dot(ivec sums, ivec weights, ivec row) { return sums + (ivec)_mm256_madd_epi16((__m256i)weights, (__m256i)row); }
#else
INLINE ivec dot(ivec sums, ivec weights, ivec row) {
    ivec low_w = weights << 16 >> 16, low_r = row << 16 >> 16; /* the first of each pair, with its sign */
    return sums + low_w * low_r + (weights >> 16) * (row >> 16);
}
#endif
#endif

enum { COLUMNS = VECTORS * LANES, CHUNK = 1 << 18 /* bytes of rows that are multiplied together, at most: half of an L2 cache */ };

#define LEAST 1e-30f /* the least peak of a row: 127 divided by it is still a float */

typedef struct {
    int64_t K, rows, E, width;
    const float *x, *equalizer; /* (K, rows, E), (K, E) */
    const int8_t *weight;       /* (K, panels, E / GROUP, COLUMNS, GROUP), filled up with zeros; bytes from 0 to 255 with an OFFSET */
    const float *scale;         /* (K, panels, COLUMNS) */
    float *out;                 /* (K, rows, width) */
} int8_args;

/* Rows of one direction, as a work item multiplies them. */
typedef struct {
    int64_t first, count, length; /* of a row, a multiple of GROUP */
    narrow *values;               /* (count, length) */
    float *scale;                 /* (count) */
    int32_t *shift;               /* (count): what OFFSET adds to the sums of a row */
    int16_t *panel;               /* (length / GROUP, COLUMNS, GROUP): weights of 16 bits */
} item;

/* Returns the layout of `weight`: GROUP, COLUMNS and OFFSET, each in ten bits. */
int stm_int8_layout(void) { return GROUP | COLUMNS << 10 | OFFSET << 20; }

/* Returns the nearest integers; of two, the even ones. The sum with 3 * 2^22 would be another way, but compilers fuse it with the product
 * that x is, and round once instead of twice. */
INLINE ivec nearest(vec x) {
#if defined(__AVX512F__)
    return (ivec)_mm512_cvtps_epi32(x);
#elif defined(__AVX__)
    return (ivec)_mm256_cvtps_epi32(x);
#else
    ivec out;
    for (int i = 0; i < LANES; i++) out[i] = (int32_t)lrintf(x[i]);
    return out;
#endif
}

INLINE ivec larger_of(ivec x, ivec y) {
    ivec m = x > y;
    return (m & x) | (~m & y);
}

/* Writes a row as whole numbers of at most 127, and returns their scale. */
static float narrowed(narrow *to, const float *x, const float *equalizer, int64_t E) {
    ivec peaks = {0}; /* as integers floats of one sign are in the same order, and NaN is the largest: a row with NaN has NaN as its peak */
    for (int64_t e = 0; e < E; e += LANES) {
        int n = lanes(E, e);
        peaks = larger_of(peaks, (ivec)absolute(load(x + e, n) * load(equalizer + e, n)));
    }
    int32_t most = 0;
    for (int i = 0; i < LANES; i++) most = peaks[i] > most ? peaks[i] : most;
    float peak;
    memcpy(&peak, &most, 4);
    if (peak < LEAST) peak = LEAST;
    float factor = 127 * (1 / peak);
    typedef narrow whole __attribute__((vector_size(sizeof(narrow) * LANES)));
    for (int64_t e = 0; e < E; e += LANES) {
        int n = lanes(E, e);
        whole values = __builtin_convertvector(nearest(load(x + e, n) * load(equalizer + e, n) * factor), whole);
        memcpy(to + e, &values, sizeof(narrow) * (size_t)n);
    }
    return peak * (1.0f / 127);
}

static void take_rows(item *i, const int8_args *a, int64_t k) {
    for (int64_t r = 0; r < i->count; r++) {
        narrow *to = i->values + r * i->length;
        i->scale[r] = narrowed(to, a->x + (k * a->rows + i->first + r) * a->E, a->equalizer + k * a->E, a->E);
        memset(to + a->E, 0, sizeof(narrow) * (size_t)(i->length - a->E));
        int32_t sum = 0;
        if (OFFSET)
            for (int64_t e = 0; e < a->E; e++) sum += to[e];
        i->shift[r] = OFFSET * sum;
    }
}

/* Returns the weights of a panel as `dot` takes them. */
static const void *panel_of(item *i, const int8_t *weight) {
    if (OFFSET) return weight;
    int64_t count = i->length * COLUMNS;
    for (int64_t e = 0; e < count; e++) i->panel[e] = weight[e];
    return i->panel;
}

/* Multiplies some rows by a panel of columns. `rows` is a constant wherever this is inlined, so that `sums` is registers. */
INLINE void tile(int rows, const item *i, int64_t first, const void *panel, const float *scale, float *out, int64_t width, int64_t columns) {
    ivec sums[ROWS][VECTORS];
    const narrow *values = i->values + first * i->length;
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = (ivec){0};
    for (int64_t g = 0; g < i->length / GROUP; g++) {
        const ivec *weights = (const ivec *)panel + g * VECTORS;
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t group;
            memcpy(&group, values + r * i->length + g * GROUP, 4);
            ivec row = group - (ivec){0};
            UNROLL for (int v = 0; v < VECTORS; v++) sums[r][v] = dot(sums[r][v], weights[v], row);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < VECTORS; v++) {
        vec y = __builtin_convertvector(sums[r][v] - i->shift[first + r], vec) * i->scale[first + r] * load(scale + v * LANES, LANES);
        int64_t left = columns - v * LANES;
        if (left > 0) store(out + r * width + v * LANES, y, left < LANES ? (int)left : LANES);
    }
}

/* Multiplies the rows of an item by a panel. The last tile reaches back over finished rows and writes the same values again. */
static void strip(const item *i, const void *panel, const float *scale, float *out, int64_t width, int64_t columns) {
    int64_t r = 0;
    for (; r + ROWS <= i->count; r += ROWS) tile(ROWS, i, r, panel, scale, out + r * width, width, columns);
    if (r == i->count) return;
    if (i->count > ROWS) {
        r = i->count - ROWS;
        tile(ROWS, i, r, panel, scale, out + r * width, width, columns);
    } else
        for (; r < i->count; r++) tile(1, i, r, panel, scale, out + r * width, width, columns);
}

/* Returns 0, or 1 if there is no memory. */
int stm_int8_product(const int8_args *a, int threads) {
    int64_t length = ceiling(a->E, GROUP) * GROUP, panels = ceiling(a->width, COLUMNS);
    /* Every thread gets the same number of chunks, if there are enough rows. */
    int64_t chunks = ceiling(a->rows * length * (int64_t)sizeof(narrow), CHUNK);
    if (a->K * chunks % threads) chunks = ceiling(a->K * chunks, threads) * threads;
    int64_t high = ceiling(a->rows, chunks);
    size_t bytes = (size_t)(high * (length * (int64_t)sizeof(narrow) + 8) + (OFFSET ? 0 : length * COLUMNS * 2) + 192);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        char *scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
        failed = !scratch;
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a->K * chunks; n++) {
            int64_t k = n / chunks, first = n % chunks * high;
            if (failed || first >= a->rows) continue;
            item i = {.first = first, .count = least(high, a->rows - first), .length = length};
            i.panel = (int16_t *)scratch;
            i.scale = (float *)(i.panel + (OFFSET ? 0 : length * COLUMNS));
            i.shift = (int32_t *)(i.scale + high);
            i.values = (narrow *)(i.shift + high);
            take_rows(&i, a, k);
            for (int64_t p = 0; p < panels; p++) {
                const void *panel = panel_of(&i, a->weight + (k * panels + p) * length * COLUMNS);
                float *out = a->out + (k * a->rows + first) * a->width + p * COLUMNS;
                strip(&i, panel, a->scale + (k * panels + p) * COLUMNS, out, a->width, least(COLUMNS, a->width - p * COLUMNS));
            }
        }
        free(scratch);
    }
    return failed;
}
