"""Policies that follow the prefix, or the session, as far as load allows."""

from libc.math cimport NAN, ceil, exp, fmax, sqrt
from libc.stdint cimport uint32_t, uint64_t

from lodestar_fast.core.lodestar cimport (
    LS_HEURISTIC, ls_candidate, ls_index_blocks, ls_instance, ls_random, ls_ring_mean,
)
from lodestar_fast.core.policies cimport Best, Candidates, Policy, offer, start


cdef Py_ssize_t longest_hit(Candidates c) noexcept:
    """Of the longest believed hits the one with the fewest requests in flight."""
    cdef const ls_candidate *x = c.r.candidates
    cdef uint32_t blocks = 0
    cdef Best best
    cdef Py_ssize_t i
    for i in range(c.n):
        blocks = max(blocks, x[i].hit_blocks)
    start(&best)
    for i in range(c.n):
        if x[i].hit_blocks == blocks:
            offer(c, &best, i, x[i].inflight)
    return best.i


cdef double hit_ratio(Candidates c, Py_ssize_t i) noexcept:
    return <double>c.r.candidates[i].hit_tokens / c.r.prompt_tokens


cdef class PrefixCache(Policy):
    """AIBrix's prefix-cache rule: the longest believed hit among instances that are not too busy.

    B = requests in flight. If max B - min B > 8: least request. Else the longest hit with
    B <= mean + 1 standard deviation, fewer B first among equal hits; nobody: least request.
    Source: the AIBrix gateway's `prefix-cache` strategy with its default thresholds.

    Cost: two passes. Weak when: one long shared prefix draws load up to the thresholds; it does not
    know how long what is queued will take.
    """

    name = "prefix_cache"

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef double total = 0, squares = 0, mean, limit
        cdef uint32_t low = x[0].inflight, high = x[0].inflight
        cdef Py_ssize_t i, best = -1
        for i in range(c.n):
            low = min(low, x[i].inflight)
            high = max(high, x[i].inflight)
            total += x[i].inflight
            squares += <double>x[i].inflight * x[i].inflight
        if high - low > 8:
            return c.least_inflight()
        mean = total / c.n
        limit = mean + sqrt(max(0.0, squares / c.n - mean * mean))
        for i in range(c.n):
            if x[i].hit_blocks == 0 or x[i].inflight > limit:
                continue
            if best < 0 or x[i].hit_blocks > x[best].hit_blocks or (
                x[i].hit_blocks == x[best].hit_blocks and x[i].inflight < x[best].inflight
            ):
                best = i
        return c.least_inflight() if best < 0 else best

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        # The longest hit is taken without an offer, and by its place among equals.
        if c.scores[choice] != c.scores[choice]:
            c.sure(choice)
        else:
            c.even_odds(choice)


cdef class PrefixThreshold(Policy):
    """The longest believed hit if it covers over `threshold` of the prompt, else least request.

    Source: the folk rule; the best threshold differs by workload, between 0.2 and 0.8.

    Cost: two passes. Weak when: one shared prefix is over the threshold: its holder gets all.
    """

    name = "prefix_threshold"

    def __cinit__(self, *, double threshold=0.5):
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: {threshold} is not in 0..1")
        self.threshold = threshold

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef Py_ssize_t best = longest_hit(c)
        return best if hit_ratio(c, best) > self.threshold else c.least_inflight()


cdef class Preble(Policy):
    """Preble's E2: exploit a prefix that covers over half of the prompt, else explore.

    Exploit: of the longest hit's holders the one with the least cost. Explore: the least cost with
    this prompt. If the holder's cost is over `rebalance` times the least with the whole prompt
    computed there, it is relieved: explore.

        cost = prefill seconds dispatched, fading over `window`, + requests decoding x d x N

    Prefill seconds: uncached tokens by the instance's learned speed, where the source's curves are
    60 % off on an A30; d: recent seconds between tokens, N: output_tokens, a guess. Source: Preble
    (arXiv 2407.00023); its sums over the nodes of a 3-minute window are sums over requests here.

    Cost: two passes, one exponential an instance. Weak when: load changes within the window.
    """

    name = "preble"

    def __cinit__(
        self, *, double threshold=0.5, double rebalance=1.5, double window=180.0,
        double output_tokens=200.0,
    ):
        if not (0 <= threshold <= 1 and rebalance >= 1 and window > 0 and output_tokens >= 0):
            raise ValueError("threshold, rebalance, window or output_tokens: makes no sense")
        self.threshold, self.rebalance = threshold, rebalance
        self.window, self.output_tokens = window, output_tokens

    cdef double cost(self, Candidates c, Py_ssize_t i) noexcept:
        """Seconds of work of the window, without this request."""
        cdef Py_ssize_t slot = c.r.candidates[i].slot
        cdef const ls_instance *x = &c.r.instances[slot]
        if self.epochs[slot] != x.epoch:  # another tenant
            self.epochs[slot], self.prefill[slot] = x.epoch, 0
        self.prefill[slot] *= exp(-fmax(0.0, c.r.now - self.at[slot]) / self.window)
        self.at[slot] = c.r.now
        return self.prefill[slot] + (
            x.decode_requests * ls_ring_mean(&x.inter_token) * self.output_tokens
        )

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best explore, exploit
        cdef Py_ssize_t i, choice
        cdef double cost, own, least = 0
        cdef uint32_t blocks = 0
        for i in range(c.n):
            blocks = max(blocks, x[i].hit_blocks)
        start(&explore)
        start(&exploit)
        for i in range(c.n):
            cost, own = self.cost(c, i), x[i].speed * x[i].own
            least = cost if i == 0 else min(least, cost)
            offer(c, &explore, i, cost + own)
            if x[i].hit_blocks == blocks and hit_ratio(c, i) > self.threshold:
                offer(c, &exploit, i, cost)
        choice = explore.i
        if exploit.ties and exploit.least <= (
            self.rebalance * (least + x[exploit.i].speed * c.r.prompt_tokens)
        ):
            choice = exploit.i
        self.prefill[x[choice].slot] += x[choice].speed * x[choice].own
        return choice

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        # Two searches whose offers mix: who tied is not known any more.
        cdef Py_ssize_t i
        for i in range(c.n):
            c.odds[i] = NAN


cdef class CacheAware(Policy):
    """SGLang's cache-aware rule.

    B = requests in flight. If max B - min B > balance_abs and max B > balance_rel x min B: the
    least B. Else the longest hit if it covers over cache_threshold of the prompt, otherwise the
    instance that holds the fewest blocks. Source: the SGLang model gateway with its Rust defaults
    (0.5, 32, 1.1); its Python binding has 0.3, 64, 1.5.

    Cost: three passes. Weak when: load stays under the thresholds, which are far; an engine that
    caches nothing holds the fewest blocks for ever.
    """

    name = "cache_aware"

    def __cinit__(
        self, *, double cache_threshold=0.5, double balance_abs=32.0, double balance_rel=1.1
    ):
        if not (0 <= cache_threshold <= 1 and balance_abs >= 0 and balance_rel >= 1):
            raise ValueError("cache_threshold, balance_abs or balance_rel: makes no sense")
        self.cache_threshold = cache_threshold
        self.balance_abs, self.balance_rel = balance_abs, balance_rel

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best smallest
        cdef Py_ssize_t i
        cdef double low = x[0].inflight, high = x[0].inflight
        for i in range(c.n):
            low, high = min(low, x[i].inflight), max(high, x[i].inflight)
        if high - low > self.balance_abs and high > self.balance_rel * low:
            return c.least_inflight()
        i = longest_hit(c)
        if hit_ratio(c, i) > self.cache_threshold:
            return i
        start(&smallest)
        for i in range(c.n):
            offer(c, &smallest, i, <double>ls_index_blocks(c.r.index, x[i].slot))
        return smallest.i


cdef class LlmdWeighted(Policy):
    """llm-d's weighted scorers: most prefix x hit ratio + queue x (1 - waiting) + kv x (1 - use).

    Waiting: requests without a first token, scaled to 0..1 between the candidates. Source: the
    Gateway API inference extension with the weights of its default profile (2, 1, 1).

    Cost: two passes. Weak when: scores of unlike units cancel: between nearly equal queues the
    scale makes one waiting request count as much as a thousand.
    """

    name = "llmd_weighted"

    def __cinit__(self, *, double prefix=2.0, double queue=1.0, double kv=1.0):
        if not (prefix >= 0 and queue >= 0 and kv >= 0):
            raise ValueError("prefix, queue, kv: negative")
        self.prefix, self.queue, self.kv = prefix, queue, kv

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        cdef double low = x[0].waiting, high = x[0].waiting, cost
        for i in range(c.n):
            low, high = min(low, x[i].waiting), max(high, x[i].waiting)
        start(&best)
        for i in range(c.n):
            cost = self.kv * fmax(x[i].occupancy, c.r.instances[x[i].slot].kv_usage)
            cost -= self.prefix * hit_ratio(c, i)
            if high > low:
                cost += self.queue * (x[i].waiting - low) / (high - low)
            offer(c, &best, i, cost)
        return best.i


cdef class LlmdSticky(Policy):
    """llm-d's newer rule: sticky until saturated, then fewest uncached tokens in flight.

    Sticky: the longest hit, if there is one. Saturated: more than `waiting` requests without a
    first token, or over `kv` of the KV cache in use. Source: the prefix-affinity guide of llm-d and
    the saturation detector of the Gateway API inference extension (5 waiting, 0.8).

    Cost: two passes. Weak when: engines differ in speed; the slow one is as sticky as the others.
    """

    name = "llmd_sticky"

    def __cinit__(self, *, long waiting=5, double kv=0.8):
        if not (waiting >= 0 and kv > 0):
            raise ValueError("waiting, kv: makes no sense")
        self.waiting, self.kv = waiting, kv

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i = longest_hit(c)
        cdef double use = fmax(x[i].occupancy, c.r.instances[x[i].slot].kv_usage)
        if x[i].hit_blocks > 0 and x[i].waiting <= self.waiting and use <= self.kv:
            return i
        start(&best)
        for i in range(c.n):
            offer(c, &best, i, <double>x[i].queued + x[i].own)
        return best.i


cdef class SessionAffinity(Policy):
    """Consistent hashing of the session with bounded load.

    Each instance ranks the sessions by a hash of both; a session goes to its highest rank among the
    instances below `bound` x the mean of requests in flight, this one included. So sessions of an
    instance that leaves spread over the others, and all others stay. The session: route()'s
    argument, else the prompt's first block. Source: rendezvous hashing (Thaler and Ravishankar
    1998) with the bound of Mirrokni et al. (2016), 1.25.

    Cost: two passes. Weak when: sessions differ in load; many share their first block; engines
    differ in speed.
    """

    name = "session_affinity"

    def __cinit__(self, *, double bound=1.25):
        if not bound >= 1:
            raise ValueError(f"bound: {bound} is below 1")
        self.bound = bound

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        c.reason_code = LS_HEURISTIC
        cdef const ls_candidate *x = c.r.candidates
        cdef Best best
        cdef Py_ssize_t i
        cdef uint64_t session = c.session(), state
        cdef double total = 1, most
        for i in range(c.n):
            total += x[i].inflight
        most = ceil(self.bound * total / c.n)
        start(&best)
        for i in range(c.n):
            if x[i].inflight + 1 <= most:
                state = session ^ (x[i].slot + 1) * <uint64_t>0x9E3779B97F4A7C15
                offer(c, &best, i, ls_random(&state))
        return best.i
