/* The instruction of AVX-512 VNNI in plain C, on vectors of any length: compiled before native_int8.c, it lets every processor run the
 * code around the instruction. By Intel's definition of VPDPBUSD: four products of an unsigned and a signed byte are added to each sum. */
#include <stdint.h>

#define __AVX512VNNI__ 1
#define __m512i ivec
#define _mm512_dpbusd_epi32 dpbusd

#include "native.h"

static inline ivec dpbusd(ivec sums, ivec a, ivec b) {
    const uint8_t *x = (const uint8_t *)&a;
    const int8_t *y = (const int8_t *)&b;
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < 4; j++) sums[i] += x[4 * i + j] * y[4 * i + j];
    return sums;
}
