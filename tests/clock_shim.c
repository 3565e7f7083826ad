/* Clocks that jump: preloaded into a process, it adds to what clock_gettime() says the seconds that
   stand in the file CLOCK_SHIM, as two doubles: for the wall clock, for the monotonic ones. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static const volatile double *offsets(void) {
    static const volatile double *mapped;
    const char *path = getenv("CLOCK_SHIM");
    if (!mapped && path) {
        int fd = open(path, O_RDONLY);
        void *at = mmap(NULL, 2 * sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
        if (fd < 0 || at == MAP_FAILED) abort();
        mapped = at;
    }
    return mapped;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, t);
    const volatile double *by = offsets();
    if (failed || !by) return failed;
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)
        t->tv_sec += (time_t)by[0];
    else if (id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_COARSE)
        t->tv_sec += (time_t)by[1];
    return 0;
}
