/* hist.c -- histograms with fixed bounds, in the shape that Prometheus wants. */
#include "lodestar.h"

/* From one iteration of a quick engine to the patience of a client: TTFT lies between 5 ms and
 * minutes. */
const double ls_bounds[LS_BOUNDS] = {0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2,
                                     0.35,  0.5,  1.0,  2.0,   5.0,  10.0,  30., 120.};

void ls_hist_add(struct ls_hist *hist, double seconds) {
    uint32_t i = 0;
    while (i < LS_BOUNDS && seconds > ls_bounds[i]) i++;
    hist->count[i]++;
    hist->sum += seconds;
}
