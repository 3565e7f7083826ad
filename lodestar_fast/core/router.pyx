"""The Cython seam of the C router: argument checks, the call of the policy, Python-visible answers.

Everything that runs once per request and instance is in csrc/; what decides is in policies.pyx,
what only reads is in view.pyx.
One thread owns a Router. A policy cannot break it: what it raises or answers wrongly is counted
as Reason.ERROR, and the instance with the fewest requests in flight is taken.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
cimport cython
from libc.math cimport INFINITY, NAN, isfinite
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from lodestar_fast.core.lodestar cimport (
    LS_ERROR, LS_INDEX_MIN_BYTES, LS_MAX_INSTANCES, LS_MAX_TICKETS, LS_SLO_MEET, LS_SLO_MISS,
    LS_SLO_UNKNOWN, LS_TOKENS_MAX, LS_VERIFIED,
    ls_candidate, ls_config, ls_event, ls_hash_blocks, ls_index_forget, ls_instance, ls_reason,
    ls_router, ls_router_add, ls_router_commit, ls_router_drain, ls_router_drain_bytes,
    ls_router_free, ls_router_new, ls_router_observe, ls_router_prepare, ls_router_remove,
    ls_router_report,
)

from lodestar_fast.core.record cimport LS_TTFT

from lodestar_fast.core import enums
from lodestar_fast.errors import NoInstanceError

Event, Reason = enums.Event, enums.Reason
cdef tuple REASONS = tuple(Reason)
cdef const char *ZEROS = b"\0" * 16
cdef double UNNAMED = -1  # an SLO of which the request says nothing: the router's own holds


@cython.final
@cython.freelist(64)
cdef class Decision:
    """Immutable answer of Router.route(); cannot be built from Python."""

    def __init__(self):
        raise TypeError("only Router.route() makes decisions")

    @property
    def reason(self):
        return REASONS[self.reason_code]

    def __repr__(self):
        return (
            f"<Decision slot={self.slot} reason={self.reason.name} predicted={self.predicted:.4f}"
            f" hit={self.hit_tokens}/{self.prompt_tokens} ticket={self.ticket:#x}>"
        )


@cython.final
cdef class Router(RouterView):
    """The decision core: instances, prefix index, tickets, samples. See router.pyi."""

    def __cinit__(
        self,
        Policy policy not None,
        *,
        long long block_bytes=64,
        long long index_bytes=64 << 20,
        long long ring=64,
        long long max_instances=64,
        long long max_tickets=16384,
        long long max_samples=8192,
        long long decisions=0,
        bint prefix_marks=False,
        double slo_ttft=0, double slo_tpot=0,
        seed=0,
        bytes key=None,
    ):
        in_range("block_bytes", block_bytes, 16, 1 << 20)
        in_range("index_bytes", index_bytes, LS_INDEX_MIN_BYTES, 1 << 38)
        in_range("ring", ring, 1, 1 << 16)
        in_range("max_instances", max_instances, 1, LS_MAX_INSTANCES)
        in_range("max_tickets", max_tickets, 1, LS_MAX_TICKETS)
        in_range("max_samples", max_samples, 1, 1 << 24)
        in_range("decisions", decisions, 0, 1 << 20)
        cdef ls_config config
        config.block_bytes = <uint32_t>block_bytes
        config.index_bytes = <size_t>index_bytes
        config.ring, config.max_instances = <uint32_t>ring, <uint32_t>max_instances
        config.max_tickets, config.max_samples = <uint32_t>max_tickets, <uint32_t>max_samples
        config.seed = seed & 0xFFFFFFFFFFFFFFFF
        in_time("slo_ttft", slo_ttft)
        in_time("slo_tpot", slo_tpot)
        self.slo_ttft, self.slo_tpot = slo_ttft, slo_tpot
        if key is not None and len(key) != 64:
            raise ValueError(f"key: {len(key)} bytes, not 64")
        self.r = ls_router_new(&config)
        if self.r == NULL:
            raise MemoryError
        if key is not None:
            memcpy(self.r.key.word, PyBytes_AS_STRING(key), 64)
            for i in range(8):
                self.r.key.word[i] |= 1  # a factor of 0 would hide what it is multiplied with
        self._policy = policy
        self.unkept = -1
        self.candidates = Candidates.__new__(Candidates)
        if decisions:
            self.decisions = Decisions(decisions, max_instances, prefix_marks)
            self.r.records = self.decisions.records
            self.candidates.scores = self.decisions.scores
            self.candidates.odds = self.decisions.odds
        self.names = []
        self.trusted = frozenset()
        self.policy_error = ""

    def __dealloc__(self):
        ls_router_free(self.r)

    @property
    def policy(self):
        return self._policy

    @policy.setter
    def policy(self, Policy value not None):
        self.may_change()
        self._policy = value

    # -- membership: rare --

    cdef int may_change(self) except -1:
        if self.deciding:
            raise RuntimeError("a policy may not change the router inside pick()")
        return 0

    def add_instance(self, str name not None, *, long long kv_tokens=0, bint prefix_caching=True):
        self.may_change()
        in_range("kv_tokens", kv_tokens, 0, 1 << 40)
        cdef int slot = ls_router_add(self.r)
        if slot < 0:
            raise ValueError(f"max_instances: all {self.r.config.max_instances} slots are taken")
        self.names[len(self.names):] = [None] * (slot + 1 - len(self.names))
        self.names[slot] = name
        if self.decisions is not None:
            self.decisions.enter(slot, self.r.instances[slot].epoch, name)
        self.configure_instance(slot, kv_tokens=kv_tokens, prefix_caching=prefix_caching)
        return slot

    def remove_instance(self, Py_ssize_t slot):
        self.may_change()
        self.known(slot)
        ls_router_remove(self.r, <uint32_t>slot)
        self.names[slot] = None

    def configure_instance(self, Py_ssize_t slot, *, long long kv_tokens, bint prefix_caching):
        self.may_change()
        in_range("kv_tokens", kv_tokens, 0, 1 << 40)
        cdef ls_instance *x = self.known(slot)
        if x.kv_tokens != <uint64_t>kv_tokens:
            x.learned_tokens = 0
        x.kv_tokens = kv_tokens
        x.prefix_caching = prefix_caching
        if not prefix_caching:
            ls_index_forget(self.r.index, <uint32_t>slot)

    def set_price(self, Py_ssize_t slot, double price):
        self.may_change()
        if not 0 <= price < INFINITY:
            raise ValueError(f"price: {price}")
        self.known(slot).price = price

    def trust(self, tenants):
        self.trusted = frozenset([self.name_key(tenant) for tenant in tenants])

    def set_routable(self, Py_ssize_t slot, bint routable):
        self.may_change()
        self.known(slot).routable = routable

    def forget_prefixes(self, Py_ssize_t slot):
        self.may_change()
        self.known(slot)
        ls_index_forget(self.r.index, <uint32_t>slot)

    # -- the driver's three verbs: hot --

    cpdef Decision route(
        self, prompt, double now, Py_ssize_t prompt_tokens=0, seed=b"", avoid=(),
        bint streaming=True,
        session=None,
        double slo_ttft=UNNAMED, double slo_tpot=UNNAMED,
        tenant=None, Py_ssize_t max_tokens=0,
    ):
        in_range("prompt_tokens", prompt_tokens, 0, LS_TOKENS_MAX)
        in_range("max_tokens", max_tokens, 0, LS_TOKENS_MAX)
        cdef ls_request request
        cdef Py_buffer body, salt
        cdef bint body_held = False, salt_held = False
        cdef Decision d
        request.prompt_tokens, request.most_tokens = <uint32_t>prompt_tokens, <uint32_t>max_tokens
        request.streaming = streaming
        try:
            if PyBytes_CheckExact(prompt):
                request.prompt = PyBytes_AS_STRING(prompt)
                request.prompt_bytes = PyBytes_GET_SIZE(prompt)
            else:
                PyObject_GetBuffer(prompt, &body, PyBUF_SIMPLE)
                body_held = True
                request.prompt, request.prompt_bytes = body.buf, body.len
            if PyBytes_CheckExact(seed):
                request.seed = PyBytes_AS_STRING(seed)
                request.seed_bytes = PyBytes_GET_SIZE(seed)
            else:
                PyObject_GetBuffer(seed, &salt, PyBUF_SIMPLE)
                salt_held = True
                request.seed, request.seed_bytes = salt.buf, salt.len
            d = self.decide(&request, now, avoid, session, slo_ttft, slo_tpot, tenant)
            self.keep()
            return d
        finally:
            if body_held:
                PyBuffer_Release(&body)
            if salt_held:
                PyBuffer_Release(&salt)

    cdef Decision decide(
        self, const ls_request *request, double now, avoid, session, double slo_ttft,
        double slo_tpot, tenant
    ):
        """route(), but for keeping the decision: keep() does that, before anything else is asked
        of the router. A proxy sends the request in between."""
        self.may_change()
        if not isfinite(now):
            raise ValueError(f"now: {now} is no time")
        self.r.promised = slo_ttft > 0 or slo_tpot > 0
        if slo_ttft == UNNAMED:
            slo_ttft = self.slo_ttft
        if slo_tpot == UNNAMED:
            slo_tpot = self.slo_tpot
        in_time("slo_ttft", slo_ttft)
        in_time("slo_tpot", slo_tpot)
        self.r.slo_ttft, self.r.slo_tpot = <float>slo_ttft, <float>slo_tpot
        self.r.session = 0 if session is None else self.name_key(session)
        self.r.tenant = 0 if tenant is None else self.tenant_tag(tenant)
        if avoid is not None and avoid != ():
            self.mark_avoided(avoid)
        return self.choose(request, now)

    cdef uint64_t name_key(self, bytes name) except? 0:
        cdef uint64_t key
        ls_hash_blocks(
            &self.r.key, PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), ZEROS, 16, 16,
            &key, 1)
        return key | 1

    cdef uint32_t tenant_tag(self, bytes tenant) except? 0:
        cdef uint64_t key = self.name_key(tenant)
        if self.trusted and key in self.trusted:
            return LS_VERIFIED
        return <uint32_t>(key >> 32) | 1

    cdef int mark_avoided(self, avoid) except -1:
        for slot in [int(each) for each in avoid]:  # may raise; no mark is left behind then
            if 0 <= slot < self.r.config.max_instances:
                self.r.avoid[<Py_ssize_t>slot] = 1
        return 0

    cdef Decision choose(self, const ls_request *request, double now):
        if ls_router_prepare(self.r, request, now) < 0:
            raise NoInstanceError("no instance may be chosen: none is known, routable and untried")
        cdef Py_ssize_t i = self.ask()
        cdef Candidates c = self.candidates
        cdef const ls_candidate *x = &self.r.candidates[i]
        cdef Decision d = Decision.__new__(Decision)
        d.slot = x.slot
        d.hit_blocks = x.hit_blocks
        d.hit_tokens = x.hit_tokens
        d.prompt_tokens = self.r.prompt_tokens
        d.predicted = c.predicted
        d.reason_code = c.reason_code
        d.weights_version = self.version
        self.r.slo_told = told(c, self.r, i)
        d.ticket = ls_router_commit(
            self.r, <uint32_t>i, <ls_reason>c.reason_code, <float>d.predicted, self.version)
        self.unkept = i if self.decisions is not None else -1
        self.ticket = d.ticket
        return d

    cdef int keep(self) except -1:
        """Keep the decision just made, if decisions are kept."""
        cdef Candidates c = self.candidates
        cdef Py_ssize_t i = self.unkept
        if i < 0:
            return 0
        self.unkept = -1
        c.r, c.n = self.r, self.r.n
        if self.overruled:
            c.even_odds(i)
        else:
            self._policy.odds(c, i)
        self.decisions.keep(self.r, c, self._policy, i, self.ticket, self.version)
        c.r, c.n = NULL, 0
        return 0

    cdef Py_ssize_t ask(self) except -1:
        """The policy's choice, with its reason and prediction left in self.candidates."""
        cdef Candidates c = self.candidates
        cdef Py_ssize_t i
        c.r, c.n = self.r, self.r.n
        c.reason_code, c.predicted, self.version = -1, NAN, 0
        self.overruled = False
        c.upper = c.tpot = c.late = NULL
        c.objective, c.priced, c.answer = LS_TTFT, False, 0
        self.deciding = True
        if c.scores != NULL:
            c.begin()
        try:
            i = self._policy.pick(c)
            if i < 0 or i >= c.n:
                raise IndexError(f"{self._policy.name} picked {i} of {c.n}")
            if c.reason_code < 0:
                raise ValueError(f"{self._policy.name} gave no reason")
            if isfinite(c.predicted):
                self.version = self._policy.version
            else:
                c.predicted = NAN
        except Exception as e:
            self.policy_error = f"{type(e).__name__}: {e}"
            if c.scores != NULL:
                c.begin()
            i = c.least_inflight()
            c.reason_code = LS_ERROR
            c.predicted = NAN
            self.overruled = True
        finally:
            self.deciding = False
            c.r, c.n = NULL, 0
        return i

    cpdef observe(
        self, long long ticket, int event, double now, long long tokens=0, long long cached=-1
    ):
        self.may_change()
        ls_router_observe(self.r, ticket, <ls_event>event, now, tokens, cached)

    cpdef report(
        self, Py_ssize_t slot, double now, double running, double waiting, double kv_usage
    ):
        self.may_change()
        ls_router_report(self.r, slot, now, running, waiting, kv_usage)

    # -- the learner's side --

    def drain(self):
        cdef size_t size = ls_router_drain_bytes(self.r)
        if size == 0:
            return b""
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
        ls_router_drain(self.r, <uint8_t *>PyBytes_AS_STRING(out))
        return out


cdef uint8_t told(Candidates c, const ls_router *r, Py_ssize_t i) noexcept:
    """Whether the choice will keep what the request asks for, by what was predicted of it."""
    if c.upper == NULL or not (r.slo_ttft > 0 or r.slo_tpot > 0) or (
            r.slo_tpot > 0 and not c.tpot[i] == c.tpot[i]):
        return LS_SLO_UNKNOWN
    if (r.slo_ttft > 0 and c.upper[i] > r.slo_ttft) or (r.slo_tpot > 0 and c.tpot[i] > r.slo_tpot):
        return LS_SLO_MISS
    return LS_SLO_MEET


cdef int in_time(str name, double seconds) except -1:
    if not 0 <= seconds <= 1e6:  # NaN is neither
        raise ValueError(f"{name}: {seconds} is no time in seconds")
    return 0


cdef int in_range(str name, long long value, long long low, long long high) except -1:
    if value < low or value > high:
        raise ValueError(f"{name}: {value} is not in {low}..{high}")
    return 0
