/* The residual stream with the pending output added, and its RMS norm, in one pass. Definition: `add_norm` of stm/backends/reference.py. */
#include "native.h"

#include <math.h>

typedef struct {
    int64_t batch, L, D;
    view x, h, total, out; /* h and out are `outer`; without h there is no total either */
    const float *weight;   /* (D) */
    const double *eps;     /* (1); by address, because every field is a word of 64 bits */
} norm_args;

static float *at(view v, int64_t row, int64_t L) { return v.data + row / L * v.b + row % L * v.l; }

static outer *at_outer(view v, int64_t row, int64_t L) { return (outer *)v.data + row / L * v.b + row % L * v.l; }

static void norm_row(const norm_args *a, int64_t row) {
    const float *x = at(a->x, row, a->L);
    outer *out = at_outer(a->out, row, a->L);
    vec squares = {0};
    if (a->h.data) {
        const outer *h = at_outer(a->h, row, a->L);
        float *total = at(a->total, row, a->L);
        for (int64_t d = 0; d < a->D; d += LANES) {
            vec v = load(x + d, lanes(a->D, d)) + load_outer(h + d, lanes(a->D, d));
            store(total + d, v, lanes(a->D, d));
            squares += v * v;
        }
        x = total; /* still in the cache */
    } else {
        for (int64_t d = 0; d < a->D; d += LANES) {
            vec v = load(x + d, lanes(a->D, d));
            squares += v * v;
        }
    }
    float scale = (float)(1 / sqrt(sum(squares) / (double)a->D + *a->eps));
    for (int64_t d = 0; d < a->D; d += LANES)
        store_outer(out + d, scale * load(x + d, lanes(a->D, d)) * load(a->weight + d, lanes(a->D, d)), lanes(a->D, d));
}

/* Returns 0: nothing can fail. */
int stm_add_norm(const norm_args *a, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < a->batch * a->L; row++) norm_row(a, row);
    return 0;
}
