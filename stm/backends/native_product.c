/* The product of many rows with few columns, which is x_proj's: out (K, rows, width) = x (K, rows, E) weight (K, E, width).
 *
 * Libraries cut the columns into blocks that so few columns do not fill, and reach two thirds of a core's speed. Here a tile of a few
 * rows and all columns, or an equal part of them, stays in registers during the walk over E. The width is a multiple of LANES.
 */
#include "native.h"

#if defined(__x86_64__) && !defined(__AVX512F__)
#define MOST 2 /* the most vectors per row of a tile: of 16 registers the tile takes 12 */
#else
#define MOST 4 /* of 32 registers the tile takes 24 */
#endif

enum { TILE = 6 * MOST }; /* vectors of a tile */

typedef struct {
    int64_t K, rows, E, width;
    const float *x, *weight;
    float *out;
} product_args;

/* Multiplies a tile. `rows` and `n_vecs` are constants wherever this is inlined, so `total` is registers, not memory. */
INLINE void tile(int rows, int n_vecs, const product_args *a, const float *x, const float *weight, float *out) {
    vec total[TILE][MOST], column[MOST];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < n_vecs; v++) total[r][v] = fill(0);
    for (int64_t e = 0; e < a->E; e++) {
        UNROLL for (int v = 0; v < n_vecs; v++) column[v] = load(weight + e * a->width + v * LANES, LANES);
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < n_vecs; v++) total[r][v] += x[r * a->E + e] * column[v];
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < n_vecs; v++) store(out + r * a->width + v * LANES, total[r][v], LANES);
}

/* Multiplies all rows by `n_vecs` vectors of columns. The last tile reaches back over finished rows and writes the same values again:
 * cheaper than tiles of every height. */
INLINE void strip(int n_vecs, const product_args *a, const float *x, const float *weight, float *out, int64_t rows) {
    const int high = n_vecs == 1 ? TILE / 2 : TILE / n_vecs;
    int64_t r = 0;
    for (; r + high <= rows; r += high) tile(high, n_vecs, a, x + r * a->E, weight, out + r * a->width);
    if (r == rows) return;
    if (rows > high)
        tile(high, n_vecs, a, x + (rows - high) * a->E, weight, out + (rows - high) * a->width);
    else
        for (; r < rows; r++) tile(1, n_vecs, a, x + r * a->E, weight, out + r * a->width);
}

/* Multiplies a run of rows by all columns, in strips of nearly equal width. */
static void part(const product_args *a, const float *x, const float *weight, float *out, int64_t rows) {
    int64_t left = a->width / LANES;
    for (int64_t strips = ceiling(left, MOST); strips > 0; strips--) {
        int64_t n_vecs = ceiling(left, strips);
        switch (n_vecs) {
        case 1: strip(1, a, x, weight, out, rows); break;
        case 2: strip(2, a, x, weight, out, rows); break;
#if MOST == 4
        case 3: strip(3, a, x, weight, out, rows); break;
        case 4: strip(4, a, x, weight, out, rows); break;
#endif
        }
        weight += n_vecs * LANES, out += n_vecs * LANES, left -= n_vecs;
    }
}

/* Returns 0: nothing can fail. */
int stm_product(const product_args *a, int threads) {
    int64_t parts = a->K % threads ? threads : 1, high = ceiling(a->rows, parts); /* per direction k */
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < a->K * parts; i++) {
        int64_t k = i / parts, first = i % parts * high, row = k * a->rows + first;
        if (first < a->rows)
            part(a, a->x + row * a->E, a->weight + k * a->E * a->width, a->out + row * a->width, least(high, a->rows - first));
    }
    return 0;
}
