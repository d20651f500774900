/* The selective scan of all directions, forward and backward. Definitions and shapes: stm/backends/reference.py.
 *
 * A work item is an image and a span of channels; it walks each direction in blocks of STEPS tokens. Within a block the loop over
 * the states is outside the loop over the tokens. So the sums of the block's outputs stay in registers, any number of states will
 * do, and a state passes through memory once per block.
 *
 * Nothing of size (B, L, E, N) exists. The backward pass keeps the states between the blocks and computes the others again; it takes
 * narrow spans, so that the kept states of a span stay small.
 */
#include "native.h"

enum { STEPS = 8, KEPT = 65536 /* floats that a span keeps while it walks, at most: a quarter of a megabyte, a part of the L2 cache */ };

typedef struct {
    int64_t K, batch, L, E, N, R;
    view u, dt, B, C, z, gap, scale; /* dt has R channels if it has a weight; scale has one */
    view out;                        /* its stride k is 0 if the directions are added and gated */
    const uint8_t *reverse;          /* (K) */
    const float *A, *D, *h0;         /* (K, E, N), (K, E), (K, E, N) or NULL */
    const float *weight, *bias;      /* those of dt: (K, E, R) or NULL, (K, E) or NULL */
} scan_args;

typedef struct {
    view out;          /* input; the others are outputs */
    view u, dt, z, gap;
    float *B, *C;      /* (spans of E, K, batch, L, N): partial sums over the channels */
    float *scale;      /* (spans of E, K, batch, L) or NULL */
    float *A, *D, *h0; /* (batch, K, E, N), (batch, K, E), (batch, K, E, N) or NULL */
} scan_grads;

/* The rows of a tensor in walking order: token t is at first + t * step. An absent tensor has NULL. */
typedef struct {
    float *first;
    int64_t step;
} rows;

/* One direction of a work item. */
typedef struct {
    const scan_args *args;
    int64_t k, b, first, n_vecs; /* first channel, vectors of the span */
    rows u, dt, B_rows, C_rows, z, gap, scale;
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

/* Inverts `gather`, for a gradient (batch, K, E, N). */
static void scatter(float *to, const vec *from, const walk *w, int64_t c) {
    int64_t N = w->args->N, head = (w->b * w->args->K + w->k) * w->args->E + c;
    for (int i = 0; i < lanes(w->args->E, c); i++)
        for (int64_t n = 0; n < N; n++) to[(head + i) * N + n] = from[n][i];
}

/* Points a walk at the tensors of its direction, and loads parameters and first state. */
static void begin(walk *w) {
    const scan_args *a = w->args;
    w->u = along(a->u, w), w->dt = along(a->dt, w), w->z = along(a->z, w), w->gap = along(a->gap, w);
    w->B_rows = along(a->B, w), w->C_rows = along(a->C, w), w->scale = along(a->scale, w);
    memset(w->dt_columns, 0, sizeof(float) * (size_t)(a->R * STEPS));
    for (int64_t v = 0; v < w->n_vecs; v++) {
        int64_t c = w->first + v * LANES;
        gather(w->rate + v * a->N, a->A, a->N, w, c, 1.44269504f); /* log2(e): exp(x) = exp2(x log2(e)), once for the walk */
        if (a->weight) gather(w->weight + v * a->R, a->weight, a->R, w, c, 1);
        if (a->h0)
            gather(w->state + v * a->N, a->h0, a->N, w, c, 1);
        else
            memset(w->state + v * a->N, 0, sizeof(vec) * (size_t)a->N);
    }
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
            vec z = load(at(w->z, t0 + t) + c, n);
            v *= z * sigmoid(z);
        }
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

/* Walks a direction to its end. If `kept` is given, it gets the states before each block, [block][vector][state]. */
static void forward(walk *w, view to, int gate, vec *kept) {
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

/* Vectors of scratch that `start` uses. */
static int64_t start_size(const scan_args *a, int64_t span) {
    int64_t columns = 2 * a->N + a->R;
    return ceiling(span, LANES) * columns + ceiling(columns * STEPS, LANES);
}

/* Returns 0, or 1 if there is no memory. */
int stm_scan(const scan_args *a, int threads) {
    int failed = 0;
    int64_t span = wide_span(a->batch, a->E, least(KEPT / (2 * a->N + a->R), a->E), threads), items = a->batch * ceiling(a->E, span);
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        vec *scratch = aligned_alloc(64, (sizeof(vec) * (size_t)start_size(a, span) + 63) / 64 * 64);
        failed = !scratch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items; i++) {
            if (failed) continue;
            walk w = start(a, i, span, scratch);
            for (w.k = 0; w.k < a->K; w.k++) forward(&w, a->out, a->z.data && w.k == a->K - 1, NULL); /* the last direction gates the sum */
        }
        free(scratch);
    }
    return failed;
}

/* The buffers of the backward pass, beside those of `walk`. */
typedef struct {
    vec *kept;      /* [block][vector][state]: h before each block */
    vec *state, *A; /* [vector][state]: gradients of h, from the tokens after the current one, and of A */
    vec *B, *C;     /* [state][token of the block]: gradients, not yet summed over the lanes */
    vec D[VECS];
    rows out, u, dt, gap; /* rows of the gradients */
} tape;

/* The gradients of one vector of channels in a block. */
typedef struct {
    vec y[STEPS];                     /* the gradient of the outputs */
    vec input[STEPS], elapsed[STEPS]; /* those of the block's fields; elapsed still lacks a factor ln 2, as `rate` has log2(e) */
} flow;

/* Takes every state of a block forward again from the kept h before it, then backward. `count` is a constant for complete blocks. */
INLINE void retreat(int64_t count, flow *g, const block *x, const walk *w, const tape *p, int64_t v, const vec *kept) {
    vec input[STEPS] = {0}, elapsed[STEPS] = {0};
    for (int64_t n = 0, i = v * w->args->N; n < w->args->N; n++, i++) {
        const float *B = w->B + n * STEPS, *C = w->C + n * STEPS;
        vec decay[STEPS] = {0}, state[STEPS + 1], A = w->rate[i], back = p->state[i], g_A = p->A[i];
        vec *g_B = p->B + n * STEPS, *g_C = p->C + n * STEPS;
        state[0] = kept[i];
        UNROLL for (int64_t t = 0; t < count; t++) {
            decay[t] = exp2v(x->elapsed[t] * A);
            state[t + 1] = decay[t] * state[t] + x->input[t] * B[t];
            g_C[t] += g->y[t] * state[t + 1];
        }
        UNROLL for (int64_t t = count - 1; t >= 0; t--) {
            back += C[t] * g->y[t];
            g_B[t] += back * x->input[t];
            input[t] += back * B[t];
            back *= decay[t];
            vec exponent = back * state[t];
            elapsed[t] += exponent * A;
            g_A += exponent * x->elapsed[t];
        }
        p->state[i] = back, p->A[i] = g_A;
    }
    UNROLL for (int64_t t = 0; t < count; t++) g->input[t] = input[t], g->elapsed[t] = elapsed[t];
}

/* Loads the gradient of y, (K, B, L, E) or one for all directions, through the gate. */
static void load_flow(flow *g, rows out, const walk *w, int64_t c, int64_t t0, int64_t count) {
    int n = lanes(w->args->E, c);
    for (int64_t t = 0; t < count; t++) {
        g->y[t] = load(at(out, t0 + t) + c, n);
        if (w->z.first) {
            vec z = load(at(w->z, t0 + t) + c, n);
            g->y[t] *= z * sigmoid(z);
        }
    }
}

/* Writes the gradients of u, dt, gap and scale, from those of input and elapsed. */
static void put_flow(const flow *g, const block *x, const tape *to, const walk *w, int64_t c, int64_t t0, int64_t count,
                     float *g_scale) {
    const scan_args *a = w->args;
    int n = lanes(w->args->E, c);
    vec D = load(a->D + w->k * a->E + c, n), shift = bias(w, c);
    for (int64_t t = 0; t < count; t++) {
        vec elapsed = 0.693147181f * g->elapsed[t], delta = elapsed + g->input[t] * x->u[t];
        vec dt = load(at(w->dt, t0 + t) + c, n) + shift;
        if (w->scale.first) {
            if (g_scale) g_scale[row(w, t0 + t)] += sum(delta * softplus(dt));
            delta *= *at(w->scale, t0 + t);
        }
        store(at(to->u, t0 + t) + c, D * g->y[t] + g->input[t] * x->delta[t], n);
        store(at(to->dt, t0 + t) + c, delta * sigmoid(dt), n);
        if (to->gap.first) store(at(to->gap, t0 + t) + c, elapsed, n);
    }
}

/* Walks a direction forward, keeping states, then backward from its last block to its first. */
static void backward(walk *w, const scan_grads *g, tape *p) {
    const scan_args *a = w->args;
    int64_t N = a->N, states = w->n_vecs * N, part = (w->first / SPAN * a->K + w->k) * a->batch + w->b;
    float *g_scale = g->scale ? g->scale + part * a->L : NULL;
    view y = g->z; /* the buffer of z's gradient holds the outputs, summed over the directions, until `backward_gate` needs them */
    forward(w, y, 0, p->kept);
    p->out = along(g->out, w), p->u = along(g->u, w), p->dt = along(g->dt, w), p->gap = along(g->gap, w);
    memset(p->state, 0, sizeof(vec) * (size_t)states);
    memset(p->A, 0, sizeof(vec) * (size_t)states);
    memset(p->D, 0, sizeof p->D);
    if (g_scale) memset(g_scale, 0, sizeof(float) * (size_t)a->L);
    for (int64_t t0 = (a->L - 1) / STEPS * STEPS; t0 >= 0; t0 -= STEPS) {
        int64_t count = least(STEPS, a->L - t0);
        transpose_block(w, t0, count);
        memset(p->B, 0, sizeof(vec) * (size_t)(N * STEPS));
        memset(p->C, 0, sizeof(vec) * (size_t)(N * STEPS));
        for (int64_t v = 0; v < w->n_vecs; v++) {
            int64_t c = w->first + v * LANES;
            block x;
            flow f;
            load_block(&x, w, v, t0, count);
            load_flow(&f, p->out, w, c, t0, count);
            if (count == STEPS)
                retreat(STEPS, &f, &x, w, p, v, p->kept + t0 / STEPS * states);
            else
                retreat(count, &f, &x, w, p, v, p->kept + t0 / STEPS * states);
            put_flow(&f, &x, p, w, c, t0, count, g_scale);
            for (int64_t t = 0; t < count; t++) p->D[v] += f.y[t] * x.u[t];
        }
        for (int64_t t = 0; t < count; t++)
            for (int64_t n = 0, i = (part * a->L + row(w, t0 + t)) * N; n < N; n++, i++) {
                g->B[i] = sum(p->B[n * STEPS + t]);
                g->C[i] = sum(p->C[n * STEPS + t]);
            }
    }
    for (int64_t v = 0; v < w->n_vecs; v++) {
        int64_t c = w->first + v * LANES;
        scatter(g->A, p->A + v * N, w, c);
        if (g->h0) scatter(g->h0, p->state + v * N, w, c);
        store(g->D + (w->b * a->K + w->k) * a->E + c, p->D[v], lanes(w->args->E, c));
    }
}

/* Replaces the outputs in z's buffer by the gradient of z. Last, since it needs the sum over all directions. */
static void backward_gate(walk *w, const scan_grads *g) {
    w->k = 0;
    rows out = along(g->out, w), g_z = along(g->z, w), gate = along(w->args->z, w);
    for (int64_t t = 0; t < w->args->L; t++)
        for (int64_t v = 0; v < w->n_vecs; v++) {
            int64_t c = w->first + v * LANES;
            int n = lanes(w->args->E, c);
            float *to = at(g_z, t) + c;
            vec z = load(at(gate, t) + c, n), s = sigmoid(z);
            store(to, load(at(out, t) + c, n) * load(to, n) * s * (1 + z * (1 - s)), n);
        }
}

/* Returns 0, or 1 if there is no memory. */
int stm_scan_backward(const scan_args *a, const scan_grads *g, int threads) {
    int failed = 0;
    int64_t blocks = ceiling(a->L, STEPS), states = VECS * a->N, items = a->batch * ceiling(a->E, SPAN);
    size_t size = sizeof(vec) * (size_t)(start_size(a, SPAN) + (blocks + 2) * states + 2 * a->N * STEPS);
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        vec *scratch = aligned_alloc(64, (size + 63) / 64 * 64);
        failed = !scratch;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < items; i++) {
            if (failed) continue;
            walk w = start(a, i, SPAN, scratch);
            tape p = {.kept = scratch + start_size(a, SPAN)};
            p.state = p.kept + blocks * states;
            p.A = p.state + states;
            p.B = p.A + states;
            p.C = p.B + a->N * STEPS;
            for (w.k = 0; w.k < a->K; w.k++) backward(&w, g, &p);
            if (a->z.data) backward_gate(&w, g);
        }
        free(scratch);
    }
    return failed;
}
