from libc.stdint cimport uint32_t, uint64_t

from lodestar_fast.core.decisions cimport Decisions
from lodestar_fast.core.lodestar cimport ls_request
from lodestar_fast.core.policies cimport Candidates, Policy
from lodestar_fast.core.view cimport RouterView


cdef class Decision:
    cdef readonly long long ticket          # give it to observe(); 0 = table full, not tracked
    cdef readonly Py_ssize_t slot
    cdef readonly int reason_code           # an ls_reason
    cdef readonly double predicted          # seconds, NaN if no model was asked
    cdef readonly Py_ssize_t hit_blocks, hit_tokens, prompt_tokens
    cdef readonly uint32_t weights_version  # behind predicted, 0 if there is none


cdef class Router(RouterView):
    cdef Candidates candidates              # one object, lent to each pick()
    cdef bint deciding                      # inside pick(): nothing may change
    cdef uint32_t version                   # of the weights behind the prediction just made
    cdef readonly Decisions decisions       # those kept; None: none are
    cdef Py_ssize_t unkept                  # choice of a decision that keep() is to follow; else -1
    cdef long long ticket                   # its ticket
    cdef double slo_ttft, slo_tpot          # of requests that say nothing of theirs; 0: none
    cdef frozenset trusted                  # keyed hashes of tenants whose traffic is verified
    cdef bint overruled                     # the policy failed: the choice is not its own

    # -- the driver's three verbs --
    cpdef Decision route(
        self, prompt, double now, Py_ssize_t prompt_tokens=*, seed=*, avoid=*, bint streaming=*,
        session=*, double slo_ttft=*, double slo_tpot=*, tenant=*, Py_ssize_t max_tokens=*)
    cpdef observe(
        self, long long ticket, int event, double now, long long tokens=*, long long cached=*)
    cpdef report(
        self, Py_ssize_t slot, double now, double running, double waiting, double kv_usage)

    cdef Decision decide(
        self, const ls_request *request, double now, avoid, session, double slo_ttft,
        double slo_tpot, tenant)
    cdef int keep(self) except -1
    cdef Decision choose(self, const ls_request *request, double now)
    cdef Py_ssize_t ask(self) except -1
    cdef uint64_t name_key(self, bytes name) except? 0
    cdef uint32_t tenant_tag(self, bytes tenant) except? 0
    cdef int mark_avoided(self, avoid) except -1
    cdef int may_change(self) except -1
