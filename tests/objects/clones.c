/* Functions that the compiler makes several of, for several processors, and what it asks about them. */
__attribute__((target_clones("avx512f", "avx2", "sse4.2", "default"))) int sum(const int *values, int count) {
    int total = 0;
    for (int i = 0; i < count; i++) total += values[i];
    return total;
}

#define ASK(name) mask = mask << 1 | !!__builtin_cpu_supports(name)

unsigned long features(void) {
    unsigned long mask = 0;
    ASK("cmov"); ASK("mmx"); ASK("popcnt"); ASK("sse"); ASK("sse2"); ASK("sse3"); ASK("ssse3"); ASK("sse4.1");
    ASK("sse4.2"); ASK("avx"); ASK("avx2"); ASK("sse4a"); ASK("fma"); ASK("avx512f"); ASK("bmi"); ASK("bmi2");
    ASK("aes"); ASK("pclmul"); ASK("avx512vl"); ASK("avx512bw"); ASK("avx512dq"); ASK("avx512cd");
    ASK("avx512vbmi"); ASK("avx512ifma"); ASK("avx512vpopcntdq"); ASK("avx512vbmi2"); ASK("gfni");
    ASK("vpclmulqdq"); ASK("avx512vnni"); ASK("avx512bitalg");
    return mask;
}

#ifdef PRINT
#include <stdio.h>
int main(void) { printf("%lu\n", features()); }
#endif
