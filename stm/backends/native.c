/* Returns the best build of the native libraries that the processor can run: 5 for x86-64-v4 with VNNI, 4 for x86-64-v4 (AVX-512), 3 for
 * x86-64-v3 (AVX2), else 0. Python asks the portable build, which runs everywhere. */
int stm_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return __builtin_cpu_supports("avx512vnni") ? 5 : 4;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return 3;
#endif
    return 0;
}
