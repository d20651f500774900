/* Causal depthwise convolution and SiLU of all directions, forward and backward. Definitions and shapes: stm/backends/reference.py.
 *
 * The span convolution averages over the repeats of a token. Repeat m (from 1) reads the token itself in its first m taps, and
 * repeats of earlier tokens in the other taps. From repeat W on it reads the token alone, so W evaluations are enough. The plain
 * convolution is the case of one repeat per token.
 */
#include "native.h"

enum { WIDEST = 16, NONE = -1, AHEAD = 8, MOST = 256 /* channels of a span */, MOST_VECS = MOST / LANES };

typedef struct {
    int64_t K, batch, L, E, W;
    view x, out; /* x is `outer` */
    const uint8_t *reverse; /* (K) */
    const int64_t *sizes;   /* (L) or NULL */
    const float *w, *b;     /* (K, E, W), (K, E) */
} conv_args;

typedef struct {
    view out;     /* input; the others are outputs */
    view x;       /* zero at the start, as every direction and tap adds to it */
    float *w, *b; /* (batch, K, E, W), (batch, K, E) */
} conv_grads;

/* A work item: an image and a span of channels. */
typedef struct {
    int64_t b, first;
    int64_t whole; /* whole vectors of channels */
    int rest;      /* channels of an incomplete last vector */
} item;

/* The weights of a direction for the channels of an item, laid out as vectors. */
typedef struct {
    vec tap[WIDEST][MOST_VECS];       /* the weight of the token t places earlier */
    vec first[WIDEST + 1][MOST_VECS]; /* the sum of the first m taps: they all read the token itself */
    vec bias[MOST_VECS];
} taps;

static const outer zeros[MOST]; /* the row that windows read before the walk begins */

static int64_t n_vecs(const item *i) { return i->whole + (i->rest > 0); }

static void load_taps(taps *to, const conv_args *a, int64_t k, const item *i) {
    for (int64_t v = 0; v < n_vecs(i); v++) {
        int64_t c = i->first + v * LANES;
        to->bias[v] = load(a->b + k * a->E + c, lanes(a->E, c));
        int n = lanes(a->E, c);
        to->first[0][v] = fill(0);
        for (int64_t t = 0; t < a->W; t++) {
            float *tap = (float *)&to->tap[t][v];
            for (int j = 0; j < LANES; j++) tap[j] = j < n ? a->w[(k * a->E + c + j) * a->W + a->W - 1 - t] : 0;
            to->first[t + 1][v] = to->first[t][v] + to->tap[t][v];
        }
    }
}

/* Returns the convolution at repeat m. x is the token, past[i] the repeat i + 1 places before its first one. */
INLINE vec evaluate(int64_t W, int64_t m, const taps *p, int64_t v, vec x, const outer *const *past, int n) {
    vec sum = p->bias[v] + p->first[m][v] * x;
    for (int64_t t = m; t < W; t++) sum += p->tap[t][v] * load_outer(past[t - m] + v * LANES, n);
    return sum;
}

/* Returns how many repeats the evaluation of repeat m stands for: that of repeat W stands for all later ones, too. */
INLINE float weight(int64_t W, int64_t m, int64_t size) { return m == W ? (float)(size - W + 1) : 1; }

/* Pushes a token onto `past`, once per repeat. `past` has the rows of the last W - 1 repeats, nearest first. */
INLINE void remember(int64_t W, int64_t *past, int64_t row, int64_t size) {
    for (int64_t times = size < W ? size : W - 1; times > 0; times--) {
        for (int64_t i = W - 2; i > 0; i--) past[i] = past[i - 1];
        past[0] = row;
    }
}

/* Returns the channels of an item in a row of v. */
INLINE float *row_of(view v, int64_t k, int64_t row, const item *i) { return v.data + k * v.k + i->b * v.b + row * v.l + i->first; }

INLINE const outer *inputs_of(view v, int64_t row, const item *i) { return (const outer *)v.data + i->b * v.b + row * v.l + i->first; }

/* Writes a vector of the outputs at a token that is repeated `size` times. `n` is a constant LANES if the vector is complete, which
 * makes loads and stores single instructions. */
INLINE void put(int n, int64_t W, int64_t size, const taps *p, int64_t v, const outer *x, const outer *const *past, float *out) {
    vec now = load_outer(x + v * LANES, n), total = {0};
    for (int64_t m = 1; m <= size && m <= W; m++) {
        vec y = evaluate(W, m, p, v, now, past, n);
        total += weight(W, m, size) * y * sigmoid(y);
    }
    store(out + v * LANES, size == 1 ? total : total / (float)size, n);
}

INLINE void put_row(int64_t W, int64_t size, const taps *p, const item *i, const outer *x, const outer *const *past, float *out) {
    for (int64_t v = 0; v < i->whole; v++) put(LANES, W, size, p, v, x, past, out);
    if (i->rest) put(i->rest, W, size, p, i->whole, x, past, out);
}

/* The plain convolution of up to two directions in one pass over the rows, which are then read once for both. */
INLINE void plain(int64_t W, const conv_args *a, const taps *p, int64_t k0, int64_t n_k, const item *i) {
    for (int64_t row = 0; row < a->L; row++) {
        const outer *x = inputs_of(a->x, row, i);
        expect(x + (row + AHEAD < a->L ? AHEAD : 0) * a->x.l, n_vecs(i));
        for (int64_t j = 0; j < n_k; j++) {
            int back = a->reverse[k0 + j];
            int64_t before = back ? a->L - 1 - row : row, step = back ? a->x.l : -a->x.l;
            const outer *past[WIDEST];
            for (int64_t t = 0; t < W - 1; t++) past[t] = t < before ? x + (t + 1) * step : zeros;
            put_row(W, 1, p + j, i, x, past, row_of(a->out, k0 + j, row, i));
        }
    }
}

/* The span convolution of a direction, in walking order. `rows` is the past, as `remember` keeps it. */
INLINE void forward(int64_t W, const conv_args *a, const taps *p, int64_t k, const item *i) {
    int64_t rows[WIDEST];
    for (int64_t t = 0; t < W; t++) rows[t] = NONE;
    for (int64_t t = 0; t < a->L; t++) {
        int64_t row = a->reverse[k] ? a->L - 1 - t : t, size = a->sizes ? a->sizes[row] : 1;
        const outer *x = inputs_of(a->x, row, i);
        float *out = row_of(a->out, k, row, i);
        const outer *past[WIDEST];
        for (int64_t t = 0; t < W - 1; t++) past[t] = rows[t] == NONE ? zeros : x + (rows[t] - row) * a->x.l;
        if (size == 1)
            put_row(W, 1, p, i, x, past, out);
        else
            put_row(W, size, p, i, x, past, out);
        remember(W, rows, row, size);
    }
}

#ifndef BF16 /* what is served has no gradient */
INLINE void backward(int64_t W, const conv_args *a, const conv_grads *g, const taps *p, int64_t k, const item *span) {
    int64_t rows[WIDEST];
    float outside[MOST] = {0}; /* takes the gradients of the zeros before the first token */
    vec g_tap[WIDEST][MOST_VECS], g_bias[MOST_VECS];
    memset(g_tap, 0, sizeof g_tap);
    memset(g_bias, 0, sizeof g_bias);
    for (int64_t i = 0; i < W; i++) rows[i] = NONE;
    for (int64_t t = 0; t < a->L; t++) {
        int64_t row = a->reverse[k] ? a->L - 1 - t : t, size = a->sizes ? a->sizes[row] : 1;
        const float *x = row_of(a->x, 0, row, span), *g_out = row_of(g->out, k, row, span);
        float *g_x = row_of(g->x, 0, row, span);
        const float *past[WIDEST];
        float *g_past[WIDEST];
        for (int64_t i = 0; i < W - 1; i++) {
            past[i] = rows[i] == NONE ? zeros : x + (rows[i] - row) * a->x.l;
            g_past[i] = rows[i] == NONE ? outside : g_x + (rows[i] - row) * g->x.l;
        }
        for (int64_t v = 0; v < n_vecs(span); v++) {
            int n = lanes(a->E, span->first + v * LANES);
            vec now = load(x + v * LANES, n), g_y = load(g_out + v * LANES, n) / (float)size;
            for (int64_t m = 1; m <= size && m <= W; m++) {
                vec y = evaluate(W, m, p, v, now, past, n), s = sigmoid(y);
                vec flow = weight(W, m, size) * g_y * s * (1 + y * (1 - s));
                g_bias[v] += flow;
                store(g_x + v * LANES, load(g_x + v * LANES, n) + flow * p->first[m][v], n);
                for (int64_t i = 0; i < m; i++) g_tap[i][v] += flow * now;
                for (int64_t i = m; i < W; i++) {
                    float *to = g_past[i - m] + v * LANES;
                    store(to, load(to, n) + flow * p->tap[i][v], n);
                    g_tap[i][v] += flow * load(past[i - m] + v * LANES, n);
                }
            }
        }
        remember(W, rows, row, size);
    }
    for (int64_t v = 0; v < n_vecs(span); v++) {
        int64_t c = span->first + v * LANES, to = (span->b * a->K + k) * a->E + c;
        store(g->b + to, g_bias[v], lanes(a->E, c));
        for (int64_t i = 0; i < W; i++)
            for (int j = 0; j < lanes(a->E, c); j++) g->w[(to + j) * W + W - 1 - i] = g_tap[i][v][j];
    }
}
#endif

static void run_plain(const conv_args *a, const item *i) {
    for (int64_t k = 0; k < a->K; k += 2) {
        int64_t n_k = a->K - k < 2 ? 1 : 2;
        taps p[2];
        for (int64_t j = 0; j < n_k; j++) load_taps(p + j, a, k + j, i);
        if (a->W == 4)
            plain(4, a, p, k, n_k, i);
        else
            plain(a->W, a, p, k, n_k, i);
    }
}

static void run_walks(const conv_args *a, const conv_grads *g, const item *i) {
    for (int64_t k = 0; k < a->K; k++) {
        taps p;
        load_taps(&p, a, k, i);
#ifndef BF16
        if (g) {
            backward(a->W, a, g, &p, k, i);
            continue;
        }
#endif
        if (a->W == 4)
            forward(4, a, &p, k, i);
        else
            forward(a->W, a, &p, k, i);
    }
}

/* Runs forward, or backward if there are gradients. */
static int run(const conv_args *a, const conv_grads *g, int threads) {
    int64_t span = wide_span(a->batch, a->E, MOST, threads), spans = ceiling(a->E, span);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < a->batch * spans; n++) {
        int64_t first = n % spans * span, channels = least(span, a->E - first);
        item i = {.b = n / spans, .first = first, .whole = channels / LANES, .rest = (int)(channels % LANES)};
        if (g || a->sizes)
            run_walks(a, g, &i);
        else
            run_plain(a, &i);
    }
    return 0;
}

/* Returns 0, success, as all functions of the library do; nothing here can fail. */
int stm_conv(const conv_args *a, int threads) { return run(a, NULL, threads); }

#ifndef BF16
int stm_conv_backward(const conv_args *a, const conv_grads *g, int threads) { return run(a, g, threads); }
#endif
