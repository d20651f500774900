/* What both passes of the selective scan share: their arguments, and the walk of a work item over the tokens of a direction.
 * Definitions and shapes: stm/backends/reference.py.
 *
 * A work item is an image and a span of channels; it walks each direction in blocks of STEPS tokens. Within a block the loop over
 * the states is outside the loop over the tokens. So the sums of the block's outputs stay in registers, any number of states will
 * do, and a state passes through memory once per block.
 *
 * Nothing of size (B, L, E, N) exists.
 */
#ifndef STM_NATIVE_SCAN_H
#define STM_NATIVE_SCAN_H

#include "native.h"

enum { STEPS = 8 };

typedef struct {
    int64_t K, batch, L, E, N, R;
    view u, dt, B, C, z, gap, scale; /* dt has R channels if it has a weight; scale has one; z is `outer` */
    view out;                        /* its stride k is 0 if the directions are added and gated */
    view gated;                      /* where the gated sum goes, `outer`; absent without z. If elements are floats: out itself */
    const uint8_t *reverse;          /* (K) */
    const float *A, *D;              /* (K, E, N), (K, E) */
    const float *weight, *bias;      /* those of dt: (K, E, R) or NULL, (K, E) or NULL */
} scan_args;

typedef struct {
    view out;     /* input; the others are outputs */
    view u, dt, z, gap;
    float *B, *C; /* (spans of E, K, batch, L, N): partial sums over the channels */
    float *scale; /* (spans of E, K, batch, L) or NULL */
    float *A, *D; /* (batch, K, E, N), (batch, K, E) */
} scan_grads;

/* The rows of a tensor in walking order: token t is at first + t * step. An absent tensor has NULL. */
typedef struct {
    float *first;
    int64_t step;
} rows;

/* The same of a tensor whose elements are `outer`. */
typedef struct {
    outer *first;
    int64_t step;
} outer_rows;

/* One direction of a work item. */
typedef struct {
    const scan_args *args;
    int64_t k, b, first, n_vecs; /* first channel, vectors of the span */
    rows u, dt, B_rows, C_rows, gap, scale;
    outer_rows z, gated;
    vec *rate, *state, *weight;  /* [vector][state]: A log2(e); h; [vector][channel of dt] */
    float *B, *C, *dt_columns;   /* [state or channel of dt][token of the block] */
} walk;

/* The inputs of one vector of channels in a block, in walking order. */
typedef struct {
    vec delta[STEPS], elapsed[STEPS], input[STEPS], u[STEPS]; /* input: delta * u */
} block;

/* Returns the row of token t of a walk. */
static int64_t row(const walk *w, int64_t t) { return w->args->reverse[w->k] ? w->args->L - 1 - t : t; }

static rows along(view v, const walk *w) {
    if (!v.data) return (rows){0};
    float *first = v.data + w->k * v.k + w->b * v.b + row(w, 0) * v.l;
    return (rows){first, w->args->reverse[w->k] ? -v.l : v.l};
}

INLINE float *at(rows r, int64_t t) { return r.first + t * r.step; }

INLINE outer *at_outer(outer_rows r, int64_t t) { return r.first + t * r.step; }

INLINE outer_rows along_outer(view v, const walk *w) {
    if (!v.data) return (outer_rows){0};
    outer *first = (outer *)v.data + w->k * v.k + w->b * v.b + row(w, 0) * v.l;
    return (outer_rows){first, w->args->reverse[w->k] ? -v.l : v.l};
}

/* Copies B, C and dt of a block by state instead of by token, the order in which the loops read them. */
static void transpose_block(const walk *w, int64_t t0, int64_t count) {
    for (int64_t t = 0; t < count; t++) {
        const float *B = at(w->B_rows, t0 + t), *C = at(w->C_rows, t0 + t);
        for (int64_t n = 0; n < w->args->N; n++) {
            w->B[n * STEPS + t] = B[n];
            w->C[n * STEPS + t] = C[n];
        }
        if (w->args->weight) {
            const float *dt = at(w->dt, t0 + t);
            for (int64_t r = 0; r < w->args->R; r++) w->dt_columns[r * STEPS + t] = dt[r];
        }
    }
}

static vec bias(const walk *w, int64_t c) {
    const scan_args *a = w->args;
    return a->bias ? load(a->bias + w->k * a->E + c, lanes(a->E, c)) : fill(0);
}

/* Loads Delta before its softplus: dt, or its product with the weight, plus the bias. `n` and `count` are constants for complete
 * vectors and blocks. */
INLINE void load_dt(int n, vec *dt, const walk *w, int64_t v, int64_t t0, int64_t count) {
    int64_t c = w->first + v * LANES;
    vec shift = bias(w, c);
    if (!w->args->weight) {
        for (int64_t t = 0; t < count; t++) dt[t] = load(at(w->dt, t0 + t) + c, n) + shift;
        return;
    }
    vec total[STEPS]; /* for all STEPS columns, a constant number; columns beyond `count` are left from the block before, and unused */
    UNROLL for (int t = 0; t < STEPS; t++) total[t] = shift;
    for (int64_t r = 0; r < w->args->R; r++) {
        vec weight = w->weight[v * w->args->R + r];
        const float *column = w->dt_columns + r * STEPS;
        UNROLL for (int t = 0; t < STEPS; t++) total[t] += column[t] * weight;
    }
    UNROLL for (int t = 0; t < STEPS; t++) dt[t] = total[t];
}

INLINE void load_lanes(int n, block *x, const walk *w, int64_t v, int64_t t0, int64_t count) {
    int64_t c = w->first + v * LANES;
    vec dt[STEPS];
    load_dt(n, dt, w, v, t0, count);
    for (int64_t t = 0; t < count; t++) {
        x->u[t] = load(at(w->u, t0 + t) + c, n);
        x->delta[t] = softplus(dt[t]);
        if (w->scale.first) x->delta[t] *= *at(w->scale, t0 + t);
        x->elapsed[t] = w->gap.first ? x->delta[t] + load(at(w->gap, t0 + t) + c, n) : x->delta[t];
        x->input[t] = x->delta[t] * x->u[t];
    }
}

static void load_block(block *x, const walk *w, int64_t v, int64_t t0, int64_t count) {
    int n = lanes(w->args->E, w->first + v * LANES);
    if (n == LANES && count == STEPS)
        load_lanes(LANES, x, w, v, t0, STEPS);
    else
        load_lanes(n, x, w, v, t0, count);
}

/* Returns the walk of a work item, with its buffers laid out in `scratch`. */
static walk start(const scan_args *a, int64_t item, int64_t span, vec *scratch) {
    int64_t spans = ceiling(a->E, span), first = item % spans * span;
    walk w = {.args = a, .b = item / spans, .first = first, .n_vecs = ceiling(least(span, a->E - first), LANES)};
    w.rate = scratch;
    w.state = w.rate + w.n_vecs * a->N;
    w.weight = w.state + w.n_vecs * a->N;
    w.B = (float *)(w.weight + w.n_vecs * a->R);
    w.C = w.B + a->N * STEPS;
    w.dt_columns = w.C + a->N * STEPS;
    return w;
}

/* Vectors of scratch that `start` uses; at least one, as no memory of no bytes may be NULL. */
static int64_t start_size(const scan_args *a, int64_t span) {
    int64_t columns = 2 * a->N + a->R;
    return 1 + ceiling(span, LANES) * columns + ceiling(columns * STEPS, LANES);
}

/* Walks a direction to its end. If `kept` is given, it gets the states before each block, [block][vector][state]. Hidden: the
 * library exports only what Python calls. */
__attribute__((visibility("hidden"))) void scan_forward(walk *w, view to, int gate, vec *kept);

#endif
