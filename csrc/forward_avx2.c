/* forward_avx2.c -- the forward pass for x86-64 with AVX2 and FMA, whatever the rest is compiled
 * for. Empty elsewhere; ls_simd_has() knows. */
#include "model.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define NAME ls_forward_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define MULADD(a, v, c) _mm256_fmadd_ps(_mm256_set1_ps(a), v, c)
#include "forward.h"
#endif
