/* forward_portable.c -- the forward pass with what every processor has: the compiler's own vectors
 * of 128 bits, which become SSE2, NEON or plain code. */
#define NAME ls_forward_portable
#define TARGET
#define LANES 4
#define MULADD(a, v, c) ((c) + (a) * (v))
#include "forward.h"
