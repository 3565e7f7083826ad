"""How long a thread may hold a core against one that wakes: sched_setattr(2), Linux."""

cdef extern from *:
    """
    #include <string.h>
    #include <unistd.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #endif

    typedef struct {
        unsigned size, policy;
        unsigned long long flags;
        int nice;
        unsigned priority;
        unsigned long long runtime, deadline, period;
    } lodestar_sched_attr; /* the first version of the kernel's, which all know */

    /* Nanoseconds of a turn of the calling thread, 0 if the kernel does not say. */
    static unsigned long long lodestar_turn(lodestar_sched_attr *a)
    {
        memset(a, 0, sizeof *a);
    #ifdef SYS_sched_getattr
        if (syscall(SYS_sched_getattr, 0, a, (unsigned)sizeof *a, 0) == 0)
            return a->runtime;
    #endif
        return 0;
    }

    static void lodestar_set_turn(unsigned long long nanoseconds)
    {
        lodestar_sched_attr a;
        if (lodestar_turn(&a) == 0)
            return;
    #ifdef SYS_sched_setattr
        a.runtime = nanoseconds;
        syscall(SYS_sched_setattr, 0, &a, 0);
    #endif
    }
    """
    ctypedef struct lodestar_sched_attr:
        pass
    unsigned long long lodestar_turn(lodestar_sched_attr *a)
    void lodestar_set_turn(unsigned long long nanoseconds)
