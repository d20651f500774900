/* What the native scan is measured against, built by benchmarks/kernels.py with the flags of setup.py. */
#include "native.h"

enum { CHAINS = 6 }; /* four registers each, beside the polynomial's */

/* The scan's arithmetic and nothing else: for each state of each token the product Delta A, exp2, Delta B u, the recurrence and
 * its output, 1 exp2, 2 products and 2 FMAs, on registers. Does CHAINS * LANES of them `count` times; the result has no meaning. */
float limit(int64_t count) {
    vec state[CHAINS], total[CHAINS], exponent[CHAINS], input[CHAINS];
    for (int c = 0; c < CHAINS; c++) {
        state[c] = fill(0.5f), total[c] = fill(0), exponent[c] = fill(-0.3f - 0.1f * c), input[c] = fill(0.7f + 0.1f * c);
        for (int i = 0; i < LANES; i++) exponent[c][i] -= 0.01f * i;
    }
    for (int64_t n = 0; n < count; n++) {
        UNROLL for (int c = 0; c < CHAINS; c++) {
            exponent[c] *= 0.999999f; /* what Delta and A, B and u would give: a product each that cannot leave the loop */
            input[c] *= 0.999999f;
            state[c] = exp2v(exponent[c]) * state[c] + input[c];
            total[c] += 0.9f * state[c];
        }
    }
    float all = 0;
    for (int c = 0; c < CHAINS; c++) all += sum(total[c] + state[c]);
    return all;
}

int64_t limit_width(void) { return CHAINS * LANES; }

/* One vector of states: decays and inputs of one token and direction. N is a multiple of LANES. */
INLINE void expand(float *decay, float *input, const float *A, const float *B, float delta, float u, int64_t N) {
    for (int64_t n = 0; n < N; n += LANES) {
        store(decay + n, expv(delta * load(A + n, LANES)), LANES);
        store(input + n, delta * u * load(B + n, LANES), LANES);
    }
}

/* The design that materialises (after EdgeVisionMamba's own description; no code of it was read): channels first, both directions
 * side by side along the states, exp(Delta A) and Delta B u of all tokens in memory (batch, E, L, 2 N), then the recurrence, one
 * channel after the other, vectorised over the states.
 * u, delta (batch, E, L, 2) and B, C (batch, L, 2, N) in walking order, A (E, 2, N), y (batch, E, L, 2); decay and input
 * (batch, E, L, 2 N) are there already: fresh memory would cost it three times as much again. */
void materialising(const float *u, const float *delta, const float *A, const float *B, const float *C, float *y, float *decay,
                   float *input, int64_t batch, int64_t E, int64_t L, int64_t N, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch * E; i++)
        for (int64_t t = 0; t < L; t++)
            for (int64_t k = 0; k < 2; k++) {
                int64_t at = (i * L + t) * 2 + k, of = ((i / E * L + t) * 2 + k) * N;
                expand(decay + at * N, input + at * N, A + (i % E * 2 + k) * N, B + of, delta[at], u[at], N);
            }
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < batch * E; i++)
        for (int64_t k = 0; k < 2; k++)
            for (int64_t n = 0; n < N; n += LANES) {
                vec h = fill(0);
                for (int64_t t = 0; t < L; t++) {
                    int64_t at = (i * L + t) * 2 + k;
                    h = load(decay + at * N + n, LANES) * h + load(input + at * N + n, LANES);
                    float part = sum(load(C + ((i / E * L + t) * 2 + k) * N + n, LANES) * h);
                    y[at] = n ? y[at] + part : part;
                }
            }
}
