"""Who decides a request: the learned policy or the heuristic behind it.

Guarded wraps both. It knows neither modes nor time; a watchdog outside tells it by steer() how
large a share of the requests the learned policy decides. Both are asked about every request, from
the same state of the random numbers, and the stream goes on from where the one that decided left
it: with share 0 the choices are those of the heuristic alone, with share 1 those of the learned
policy alone, number for number.

What it notices while deciding needs no measurement, so it shows within some dozen requests, also
while nothing comes back: exceptions, absurd predictions, and choices that plain physics (idle time
plus own and queued work at the instance's own speed, and what it costs others as the policy counts
it) finds worse than the heuristic's choice.
"""

from cpython.mem cimport PyMem_Calloc, PyMem_Free
cimport cython
from libc.math cimport NAN, log
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from lodestar_fast.core.costs cimport Lmetric
from lodestar_fast.core.aims cimport has_slo
from lodestar_fast.core.lodestar cimport (
    LS_ABSURD, LS_COLD, LS_ERROR, LS_HEURISTIC, LS_ONLY_ONE, LS_REASONS, ls_candidate, ls_router,
    ls_router_prompt_key,
)
from lodestar_fast.core.policies cimport Candidates, Policy

cdef enum:
    SIDES = 1 << 16       # conversations whose side is remembered; 512 KiB
    WAYS = 8              # places of one entry: a cache line
    CLOSERS = 4           # bytes that end a prompt and not its beginning in the next turn: "}]
    LEARNED_SIDE = 1      # states of an entry
    OTHER_SIDE = 2
    SHARED = 3            # different prompts ended here: no conversation's own

cdef uint64_t HIGH = 0xFFFFFFFF00000000
cdef double FADE = 1 / 64.0      # weight of one decision in the fading means
cdef double MOST_SECONDS = 1e4   # a prediction beyond means nothing
cdef double MOST_REGRET = 3.0    # log; one decision counts at most so much


@cython.final
cdef class Guarded(Policy):
    """A learned policy with a heuristic to fall back on; steer() says who decides how much.

    Cost: the learned policy's, one heuristic's, and some 0.1 us.
    """

    def __cinit__(self, Policy learned not None, Policy fallback not None):
        self.learned, self.fallback = learned, fallback
        self.on_lmetric = type(fallback) is Lmetric
        self.share, self.asks, self.reason_else = 1, True, LS_HEURISTIC
        self.last_error = self.mode_name = ""
        self.sides = <uint64_t *>PyMem_Calloc(SIDES, sizeof(uint64_t))
        if self.sides == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.sides)

    @property
    def name(self):
        return self.learned.name

    @property
    def version(self):
        return self.learned.version

    def load(self, blob):
        return self.learned.load(blob)

    def steer(self, double share, int reason, bint asks=True):
        if not (0 <= share <= 1 and 0 <= reason < LS_REASONS):
            raise ValueError(f"share {share}, reason {reason}")
        if share != self.share:
            memset(self.sides, 0, SIDES * sizeof(uint64_t))
        self.share, self.reason_else, self.asks = share if asks else 0, reason, asks

    def forget(self):
        self.regret = self.absurd = self.raised = 0

    cpdef Py_ssize_t pick(self, Candidates c) except? -1:
        c.check(0)
        self.mixed = 0
        if not self.asks:
            return self.fallback.pick(c)
        cdef const ls_candidate *x = c.r.candidates
        cdef uint64_t start = c.r.rng, rng
        cdef Py_ssize_t safe = self.fallback.pick(c), choice
        if safe < 0 or safe >= c.n:
            return safe  # the router overrules it
        if c.scores != NULL:
            self.fallback.odds(c, safe)
            memcpy(self.safe_odds, c.odds, <size_t>c.n * sizeof(float))
        rng = c.r.rng
        c.r.rng = start
        cdef bint mine = self.on_learned_side(c.r)
        c.lmetric_known, c.lmetric, c.lmetric_rng = self.on_lmetric, safe, rng
        choice = self.ask(c)
        c.lmetric_known = False
        c.fallback = safe
        if choice < 0:
            self.raised += (1 - self.raised) * FADE
            return self.fall_back(c, safe, rng, LS_ERROR if mine else self.reason_else)
        self.raised -= self.raised * FADE
        if c.reason_code == LS_COLD:
            self.mixed, self.wanted = self.share, choice
            if mine:
                return choice
            return self.fall_back(c, safe, rng, LS_COLD)
        if c.reason_code == LS_ONLY_ONE:
            return choice
        if not 0 < c.predicted <= MOST_SECONDS:  # NaN is neither
            self.absurd += (1 - self.absurd) * FADE
            c.predicted = NAN
            return self.fall_back(c, safe, rng, LS_ABSURD if mine else self.reason_else)
        self.absurd -= self.absurd * FADE
        self.mixed, self.wanted = self.share, choice

        cdef double regret = 0, predicted = self.learned.forecast(safe)
        if choice != safe:
            regret = log(self.learned.physics(c, choice) / self.learned.physics(c, safe))
            regret = max(-MOST_REGRET, min(MOST_REGRET, regret))
        if c.upper == NULL:  # physics knows nothing of other aims
            self.regret += (regret - self.regret) * FADE
        self.asked += 1
        self.agreed += choice == safe
        if predicted == predicted:
            self.predicted_learned += c.predicted
            self.predicted_fallback += predicted
        # Where it knowingly lets this request wait for the sake of others, the request's own time
        # tells nothing: such decisions are no evidence, whoever makes them.
        # Nor is one with an SLO: it is to be in time, and to let others be, not to be early.
        if not (c.predicted > predicted or has_slo(c.r)):
            c.r.reference = x[safe].expected
        if mine:
            return choice
        c.predicted = predicted
        return self.fall_back(c, safe, rng, self.reason_else)

    cdef void odds(self, Candidates c, Py_ssize_t choice) noexcept:
        """The odds of both sides, mixed by the share: who is on which side was drawn. That a
        conversation stays on its side is not in it."""
        cdef Py_ssize_t i
        if not self.asks:
            self.fallback.odds(c, choice)
            return
        if self.mixed > 0:
            self.learned.odds(c, self.wanted)
        for i in range(c.n):
            if self.mixed == 0:
                c.odds[i] = self.safe_odds[i]
            elif self.mixed < 1:
                c.odds[i] = self.mixed * c.odds[i] + (1 - self.mixed) * self.safe_odds[i]

    cdef str mode(self):
        return self.mode_name

    cdef Py_ssize_t ask(self, Candidates c):
        """The learned policy's choice, reason and prediction left in c; -1 if it raised."""
        cdef Py_ssize_t choice
        c.reason_code, c.predicted = -1, NAN
        try:
            choice = self.learned.pick(c)
            if choice < 0 or choice >= c.n or c.reason_code < 0:
                raise IndexError(f"picked {choice} of {c.n}, reason {c.reason_code}")
            return choice
        except Exception as e:
            self.last_error = f"{type(e).__name__}: {e}"
            c.predicted = NAN
            return -1

    cdef Py_ssize_t fall_back(
        self, Candidates c, Py_ssize_t choice, uint64_t rng, int reason
    ) noexcept:
        c.r.rng = rng
        c.reason_code = reason if c.n > 1 else LS_ONLY_ONE
        return choice

    cdef bint on_learned_side(self, const ls_router *r) noexcept:
        """Whether the learned policy decides this request: the same for a whole conversation.

        Nobody names conversations, and no fixed length of prefix does: the first kilobytes may be
        a system prompt that all of them share. So the side is drawn for a prompt as a whole, and
        remembered under its last block. A prompt that continues it knows it by the prefix index:
        where its known part ends, the earlier one ended, and it inherits the side. Only what many
        prompts end with (a system prompt with a word behind it) is nobody's: each draws there.
        Of an entry 32 bits are the block's hash, 30 of the whole prompt's, 2 the state.
        """
        if self.share >= 1:
            return True
        if self.share <= 0:
            return False
        cdef uint64_t key = ls_router_prompt_key(r)
        cdef uint64_t mark = 0
        cdef uint64_t *own = NULL
        cdef const uint64_t *earlier
        cdef Py_ssize_t depth, end = r.blocks
        cdef int state = 0
        if end > 0 and r.prompt_bytes - <size_t>end * r.config.block_bytes < CLOSERS:
            end -= 1
        if end > 0:
            mark = r.hashes[end - 1] & HIGH | (key & 0x3FFFFFFF) << 2
            own = self.entry(r.hashes[end - 1])
            if own[0] != 0 and (own[0] ^ mark) & HIGH == 0:
                if (own[0] ^ mark) >> 2 != 0:
                    own[0] = mark | SHARED
                state = own[0] & 3
            else:
                own[0] = 0
                for depth in (r.known, <Py_ssize_t>r.known - 1):
                    if 0 < depth < end:
                        earlier = self.entry(r.hashes[depth - 1])
                        if earlier[0] != 0 and (earlier[0] ^ r.hashes[depth - 1]) & HIGH == 0:
                            state = earlier[0] & 3
                            break
        if state != LEARNED_SIDE and state != OTHER_SIDE:
            state = LEARNED_SIDE if (key >> 11) * (1.0 / (1 << 53)) < self.share else OTHER_SIDE
        if own != NULL and own[0] == 0:
            own[0] = mark | <uint64_t>state
        return state == LEARNED_SIDE

    cdef uint64_t *entry(self, uint64_t hash) noexcept:
        """The entry of a block; if there is none, the place for one: empty or to be overwritten."""
        cdef uint64_t *place = &self.sides[hash % (SIDES / WAYS) * WAYS]
        cdef Py_ssize_t i, empty = -1
        for i in range(WAYS):
            if place[i] == 0:
                empty = i
            elif (place[i] ^ hash) & HIGH == 0:
                return &place[i]
        return &place[empty if empty >= 0 else <Py_ssize_t>(hash >> 29) % WAYS]
