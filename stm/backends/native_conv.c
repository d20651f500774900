/* Causal depthwise convolution and SiLU of all directions, forward and backward. Definitions and shapes: stm/scan.py.
 *
 * The span convolution averages over the repeats of a token. Repeat m (from 1) sees the token itself in its first m taps
 * and the repeats before it in the rest; from repeat W on it sees nothing else, so that W evaluations are enough. The plain
 * convolution is the case of one repeat.
 */
#include "native.h"

enum { WIDEST = 16, NONE = -1, AHEAD = 8 };

typedef struct {
    int64_t K, batch, L, E, W;
    view x, out;
    const uint8_t *reverse; /* (K) */
    const int64_t *sizes;   /* (L) or NULL */
    const float *w, *b;     /* (K, E, W), (K, E) */
} conv_args;

typedef struct {
    view out;     /* comes in; the others go out */
    view x;       /* zero at the start */
    float *w, *b; /* (batch, K, E, W), (batch, K, E) */
} conv_grads;

/* The taps of a direction and SPAN channels. */
typedef struct {
    vec tap[WIDEST][VECS];       /* of the token t before */
    vec first[WIDEST + 1][VECS]; /* the sum of the first m taps */
    vec bias[VECS];
} taps;

static const float zeros[SPAN];

static void load_taps(taps *to, const conv_args *a, int64_t k, int64_t first, int64_t n_vecs) {
    memset(to, 0, sizeof *to);
    for (int64_t v = 0; v < n_vecs; v++) {
        int64_t c = first + v * LANES;
        to->bias[v] = load(a->b + k * a->E + c, lanes(a->E, c));
        for (int64_t t = 0; t < a->W; t++) {
            for (int i = 0; i < lanes(a->E, c); i++) to->tap[t][v][i] = a->w[(k * a->E + c + i) * a->W + a->W - 1 - t];
            to->first[t + 1][v] = to->first[t][v] + to->tap[t][v];
        }
    }
}

/* The convolution at repeat m: x is the token, past[i] the repeat i + 1 places before its first one. */
INLINE vec evaluate(int64_t W, int64_t m, const taps *p, int64_t v, vec x, const float *const *past, int n) {
    vec sum = p->bias[v] + p->first[m][v] * x;
    for (int64_t t = m; t < W; t++) sum += p->tap[t][v] * load(past[t - m] + v * LANES, n);
    return sum;
}

/* How many repeats the evaluation of repeat m stands for. */
INLINE float weight(int64_t W, int64_t m, int64_t size) { return m == W ? (float)(size - W + 1) : 1; }

/* Moves a token into the past, the rows of the repeats before the next token, nearest first, as often as it is repeated. */
INLINE void remember(int64_t W, int64_t *past, int64_t row, int64_t size) {
    for (int64_t times = size < W ? size : W - 1; times > 0; times--) {
        for (int64_t i = W - 2; i > 0; i--) past[i] = past[i - 1];
        past[0] = row;
    }
}

/* The plain convolution of up to two directions, in one pass over the rows. */
INLINE void plain(int64_t W, const conv_args *a, const taps *p, int64_t k0, int64_t n_k, int64_t b, int64_t first, int64_t n_vecs) {
    for (int64_t row = 0; row < a->L; row++) {
        const float *x = a->x.data + b * a->x.b + row * a->x.l + first;
        expect(x + (row + AHEAD < a->L ? AHEAD : 0) * a->x.l, n_vecs);
        for (int64_t j = 0; j < n_k; j++) {
            int back = a->reverse[k0 + j];
            int64_t before = back ? a->L - 1 - row : row, step = back ? a->x.l : -a->x.l;
            float *out = a->out.data + (k0 + j) * a->out.k + b * a->out.b + row * a->out.l + first;
            const float *past[WIDEST];
            for (int64_t i = 0; i < W - 1; i++) past[i] = i < before ? x + (i + 1) * step : zeros;
            for (int64_t v = 0; v < n_vecs; v++) {
                int n = lanes(a->E, first + v * LANES);
                vec y = evaluate(W, 1, p + j, v, load(x + v * LANES, n), past, n);
                store(out + v * LANES, y * sigmoid(y), n);
            }
        }
    }
}

/* The span convolution of a direction, in walking order. */
INLINE void forward(int64_t W, const conv_args *a, const taps *p, int64_t k, int64_t b, int64_t first, int64_t n_vecs) {
    int64_t rows[WIDEST];
    for (int64_t i = 0; i < W; i++) rows[i] = NONE;
    for (int64_t t = 0; t < a->L; t++) {
        int64_t row = a->reverse[k] ? a->L - 1 - t : t, size = a->sizes ? a->sizes[row] : 1;
        const float *x = a->x.data + b * a->x.b + row * a->x.l + first;
        float *out = a->out.data + k * a->out.k + b * a->out.b + row * a->out.l + first;
        const float *past[WIDEST];
        for (int64_t i = 0; i < W - 1; i++) past[i] = rows[i] == NONE ? zeros : x + (rows[i] - row) * a->x.l;
        for (int64_t v = 0; v < n_vecs; v++) {
            int n = lanes(a->E, first + v * LANES);
            vec now = load(x + v * LANES, n), total = {0};
            for (int64_t m = 1; m <= size && m <= W; m++) {
                vec y = evaluate(W, m, p, v, now, past, n);
                total += weight(W, m, size) * y * sigmoid(y);
            }
            store(out + v * LANES, size == 1 ? total : total / (float)size, n);
        }
        remember(W, rows, row, size);
    }
}

INLINE void backward(int64_t W, const conv_args *a, const conv_grads *g, const taps *p, int64_t k, int64_t b, int64_t first,
                     int64_t n_vecs) {
    int64_t rows[WIDEST];
    float outside[SPAN] = {0}; /* what flows to before the first token */
    vec g_tap[WIDEST][VECS], g_bias[VECS];
    memset(g_tap, 0, sizeof g_tap);
    memset(g_bias, 0, sizeof g_bias);
    for (int64_t i = 0; i < W; i++) rows[i] = NONE;
    for (int64_t t = 0; t < a->L; t++) {
        int64_t row = a->reverse[k] ? a->L - 1 - t : t, size = a->sizes ? a->sizes[row] : 1;
        const float *x = a->x.data + b * a->x.b + row * a->x.l + first;
        const float *g_out = g->out.data + k * g->out.k + b * g->out.b + row * g->out.l + first;
        float *g_x = g->x.data + b * g->x.b + row * g->x.l + first;
        const float *past[WIDEST];
        float *g_past[WIDEST];
        for (int64_t i = 0; i < W - 1; i++) {
            past[i] = rows[i] == NONE ? zeros : x + (rows[i] - row) * a->x.l;
            g_past[i] = rows[i] == NONE ? outside : g_x + (rows[i] - row) * g->x.l;
        }
        for (int64_t v = 0; v < n_vecs; v++) {
            int n = lanes(a->E, first + v * LANES);
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
    for (int64_t v = 0; v < n_vecs; v++) {
        int64_t c = first + v * LANES, to = (b * a->K + k) * a->E + c;
        store(g->b + to, g_bias[v], lanes(a->E, c));
        for (int64_t i = 0; i < W; i++)
            for (int j = 0; j < lanes(a->E, c); j++) g->w[(to + j) * W + W - 1 - i] = g_tap[i][v][j];
    }
}

static void run_plain(const conv_args *a, int64_t b, int64_t first, int64_t n_vecs) {
    for (int64_t k = 0; k < a->K; k += 2) {
        int64_t n_k = a->K - k < 2 ? 1 : 2;
        taps p[2];
        for (int64_t j = 0; j < n_k; j++) load_taps(p + j, a, k + j, first, n_vecs);
        if (a->W == 4)
            plain(4, a, p, k, n_k, b, first, n_vecs);
        else
            plain(a->W, a, p, k, n_k, b, first, n_vecs);
    }
}

static void run_walks(const conv_args *a, const conv_grads *g, int64_t b, int64_t first, int64_t n_vecs) {
    for (int64_t k = 0; k < a->K; k++) {
        taps p;
        load_taps(&p, a, k, first, n_vecs);
        if (g)
            backward(a->W, a, g, &p, k, b, first, n_vecs);
        else if (a->W == 4)
            forward(4, a, &p, k, b, first, n_vecs);
        else
            forward(a->W, a, &p, k, b, first, n_vecs);
    }
}

/* Forward, or backward where there are gradients. */
static int run(const conv_args *a, const conv_grads *g, int threads) {
    int64_t spans = (a->E + SPAN - 1) / SPAN;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < a->batch * spans; i++) {
        int64_t b = i / spans, first = i % spans * SPAN, left = a->E - first;
        int64_t n_vecs = ((left < SPAN ? left : SPAN) + LANES - 1) / LANES;
        if (g || a->sizes)
            run_walks(a, g, b, first, n_vecs);
        else
            run_plain(a, b, first, n_vecs);
    }
    return 0;
}

/* 0, as all of them return where nothing failed. */
int stm_conv(const conv_args *a, int threads) { return run(a, NULL, threads); }

int stm_conv_backward(const conv_args *a, const conv_grads *g, int threads) { return run(a, g, threads); }
