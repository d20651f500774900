/* The forward pass of the selective scan, which the backward pass runs too, to keep states. The walk: native_scan.h. */
#include "native_scan.h"

enum { KEPT = 65536 /* floats that a span keeps while it walks, at most: a quarter of a megabyte, a part of the L2 cache */ };

/* Writes to[state] = factor times the channels from c on of `from` (K, E, N), with zeros in lanes beyond E. Channels then lie side by
 * side in vectors, as the scan needs them. */
static void gather(vec *to, const float *from, int64_t N, const walk *w, int64_t c, float factor) {
    float *column = (float *)to;
    int n = lanes(w->args->E, c);
    if (n < LANES) memset(to, 0, sizeof(vec) * (size_t)N);
    for (int i = 0; i < n; i++) {
        const float *row = from + (w->k * w->args->E + c + i) * N;
        for (int64_t j = 0; j < N; j++) column[j * LANES + i] = factor * row[j];
    }
}

/* Points a walk at the tensors of its direction, and loads its parameters. */
static void begin(walk *w) {
    const scan_args *a = w->args;
    w->u = along(a->u, w), w->dt = along(a->dt, w), w->gap = along(a->gap, w);
    w->z = along_outer(a->z, w), w->gated = along_outer(a->gated, w);
    w->B_rows = along(a->B, w), w->C_rows = along(a->C, w), w->scale = along(a->scale, w);
    memset(w->dt_columns, 0, sizeof(float) * (size_t)(a->R * STEPS));
    for (int64_t v = 0; v < w->n_vecs; v++) {
        int64_t c = w->first + v * LANES;
        gather(w->rate + v * a->N, a->A, a->N, w, c, 1.44269504f); /* log2(e): exp(x) = exp2(x log2(e)), once for the walk */
        if (a->weight) gather(w->weight + v * a->R, a->weight, a->R, w, c, 1);
    }
    memset(w->state, 0, sizeof(vec) * (size_t)(w->n_vecs * a->N)); /* every walk starts from nothing */
}

/* Advances all states by `count` tokens, and adds C h to y. `count` is a constant wherever this is inlined, so the tokens' sums are
 * registers. */
INLINE void advance(int count, vec *y, const block *x, int64_t from, const walk *w, const vec *rate, vec *state) {
    vec total[STEPS];
    UNROLL for (int t = 0; t < count; t++) total[t] = y[from + t];
    for (int64_t n = 0; n < w->args->N; n++) {
        const float *B = w->B + n * STEPS + from, *C = w->C + n * STEPS + from;
        vec A = rate[n], h = state[n];
        UNROLL for (int t = 0; t < count; t++) {
            h = exp2v(x->elapsed[from + t] * A) * h + x->input[from + t] * B[t];
            total[t] += C[t] * h;
        }
        state[n] = h;
    }
    UNROLL for (int t = 0; t < count; t++) y[from + t] = total[t];
}

/* Advances by a block; an incomplete one goes in pairs of tokens, then one by one, with constant counts again. */
static void advance_block(vec *y, const block *x, int64_t count, const walk *w, const vec *rate, vec *state) {
    int64_t t = 0;
    if (count == STEPS) advance(STEPS, y, x, 0, w, rate, state), t = STEPS;
    for (; t + 2 <= count; t += 2) advance(2, y, x, t, w, rate, state);
    for (; t < count; t++) advance(1, y, x, t, w, rate, state);
}

INLINE void put_lanes(int n, const vec *y, rows out, int add, const walk *w, int64_t c, int64_t t0, int64_t count, int gate) {
    for (int64_t t = 0; t < count; t++) {
        float *to = at(out, t0 + t) + c;
        vec v = add ? y[t] + load(to, n) : y[t];
        if (gate) {
            vec z = load_outer(at_outer(w->z, t0 + t) + c, n);
            store_outer(at_outer(w->gated, t0 + t) + c, v * (z * sigmoid(z)), n);
        } else
            store(to, v, n);
    }
}

/* Writes outputs; `add` adds them to the values of the other direction, `gate` multiplies by SiLU(z) afterwards. */
static void put_block(const vec *y, rows out, int add, const walk *w, int64_t c, int64_t t0, int64_t count, int gate) {
    int n = lanes(w->args->E, c);
    if (n == LANES && count == STEPS)
        put_lanes(LANES, y, out, add, w, c, t0, STEPS, gate);
    else
        put_lanes(n, y, out, add, w, c, t0, count, gate);
}

void scan_forward(walk *w, view to, int gate, vec *kept) {
    const scan_args *a = w->args;
    begin(w);
    rows out = along(to, w);
    int add = out.first && to.k == 0 && w->k > 0;
    for (int64_t t0 = 0; t0 < a->L; t0 += STEPS) {
        int64_t count = least(STEPS, a->L - t0), states = w->n_vecs * a->N;
        if (kept) memcpy(kept + t0 / STEPS * states, w->state, sizeof(vec) * (size_t)states);
        transpose_block(w, t0, count);
        for (int64_t v = 0; v < w->n_vecs; v++) {
            int64_t c = w->first + v * LANES;
            block x;
            vec y[STEPS], D = load(a->D + w->k * a->E + c, lanes(w->args->E, c));
            load_block(&x, w, v, t0, count);
            for (int64_t t = 0; t < count; t++) y[t] = D * x.u[t];
            advance_block(y, &x, count, w, w->rate + v * a->N, w->state + v * a->N);
            if (out.first) put_block(y, out, add, w, c, t0, count, gate);
        }
    }
}

/* Returns 0, or 1 if there is no memory. */
int stm_scan(const scan_args *a, int threads) {
    int failed = 0;
    int64_t columns = 2 * a->N + a->R; /* none if there are neither states nor a weight of dt */
    int64_t span = wide_span(a->batch, a->E, columns ? least(KEPT / columns, a->E) : a->E, threads), items = a->batch * ceiling(a->E, span);
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        vec *scratch = aligned_alloc(64, (sizeof(vec) * (size_t)start_size(a, span) + 63) / 64 * 64);
        failed = !scratch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items; i++) {
            if (failed) continue;
            walk w = start(a, i, span, scratch);
            for (w.k = 0; w.k < a->K; w.k++) scan_forward(&w, a->out, a->z.data && w.k == a->K - 1, NULL); /* the last direction gates the sum */
        }
        free(scratch);
    }
    return failed;
}
