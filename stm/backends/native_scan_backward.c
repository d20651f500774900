/* The backward pass of the selective scan. The walk: native_scan.h.
 *
 * It keeps the states between the blocks and computes the others again. It takes narrow spans, so that the kept states of a span
 * stay small.
 */
#include "native_scan.h"

/* Blocks of a walk: none without tokens. */
static int64_t blocks_of(const scan_args *a) { return ceiling(a->L, STEPS); }

/* Inverts `gather`, for a gradient (batch, K, E, N). */
static void scatter(float *to, const vec *from, const walk *w, int64_t c) {
    int64_t N = w->args->N, head = (w->b * w->args->K + w->k) * w->args->E + c;
    for (int i = 0; i < lanes(w->args->E, c); i++)
        for (int64_t n = 0; n < N; n++) to[(head + i) * N + n] = from[n][i];
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
        vec factor[STEPS] = {0}, state[STEPS + 1], A = w->rate[i], back = p->state[i], g_A = p->A[i];
        vec *g_B = p->B + n * STEPS, *g_C = p->C + n * STEPS;
        state[0] = kept[i];
        UNROLL for (int64_t t = 0; t < count; t++) {
            factor[t] = exp2v(x->elapsed[t] * A);
            state[t + 1] = factor[t] * state[t] + x->input[t] * B[t];
            g_C[t] += g->y[t] * state[t + 1];
        }
        UNROLL for (int64_t t = count - 1; t >= 0; t--) {
            back += C[t] * g->y[t];
            g_B[t] += back * x->input[t];
            input[t] += back * B[t];
            back *= factor[t];
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
            vec z = load_outer(at_outer(w->z, t0 + t) + c, n);
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
    scan_forward(w, y, 0, p->kept);
    p->out = along(g->out, w), p->u = along(g->u, w), p->dt = along(g->dt, w), p->gap = along(g->gap, w);
    memset(p->state, 0, sizeof(vec) * (size_t)states);
    memset(p->A, 0, sizeof(vec) * (size_t)states);
    memset(p->D, 0, sizeof p->D);
    if (g_scale) memset(g_scale, 0, sizeof(float) * (size_t)a->L);
    for (int64_t t0 = (blocks_of(a) - 1) * STEPS; t0 >= 0; t0 -= STEPS) {
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
    int64_t blocks = blocks_of(a), states = VECS * a->N, items = a->batch * ceiling(a->E, SPAN);
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
