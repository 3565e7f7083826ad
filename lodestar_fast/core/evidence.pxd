from libc.stdint cimport uint32_t

from lodestar_fast.core.lodestar cimport LS_MAX_INSTANCES, ls_sample


cdef struct tally:
    double n                         # requests, those of a loud tenant less than one each
    double mean, square              # of log(measured / reference); sum of squared distances
    double ttft                      # sum of measured, seconds


cdef struct cusum:
    double up, down                  # standard deviations in excess, to either side


cdef enum:
    ARMS = 3                         # AGREED, DEVIATED, CONTROL of evidence.pyx
    WINDOW = 128                     # first tokens that the median error is taken over
    PAIRS = 512                      # first tokens that are kept with what was predicted
    SENT = 512                       # requests that tell how much each tenant sends


cdef class Evidence:
    cdef readonly long long measured  # first tokens with a prediction since the start
    cdef double errors[WINDOW]        # newest |log(measured / predicted)|, a ring
    cdef double weights[WINDOW]       # of these
    cdef Py_ssize_t held, at          # how many are in it; where the next goes
    cdef float pairs[PAIRS][2]        # newest (predicted, measured) in seconds, a ring
    cdef unsigned char reasons[PAIRS]
    cdef long long paired             # how many there were; the next goes at this modulo PAIRS
    cdef tally arms[ARMS]
    cdef long long requests[2]        # of the learned policy, of the fallback; since the start
    cdef double seconds[2]            # sums of their measured TTFTs

    cdef double checked[WINDOW][2]    # of verified ones: the same errors, and when; a ring
    cdef Py_ssize_t checks            # how many there were; the next goes at this modulo WINDOW
    cdef double newest                # dispatch of the newest first token, seconds
    cdef uint32_t senders[SENT]       # tenants of the newest requests, a ring
    cdef long long sent               # how many there were
    cdef dict factors                 # by tenant: what its requests count, where that is below 1

    cdef double habit, spread         # of log(measured / predicted): fading mean, and variance
    cdef cusum fleet
    cdef cusum engines[LS_MAX_INSTANCES]  # by slot
    cdef readonly long long fleet_drifts, engine_drifts  # since the start
    cdef readonly int drifted         # slot of the last one, -1: the fleet, -2: none yet
    cdef readonly bint slower         # the last one was to longer times than predicted

    cdef void follow(self, unsigned int slot, double error, double weight) noexcept
    cdef int weigh(self, const ls_sample *s) except -1
    cdef list verified_errors(self)
    cdef dict shared_out(self)
