"""The last decisions, kept as they were made, and written as JSON.

A router that keeps them copies what its policy saw and thought into a ring (csrc/record.c). Who
asked is added by the caller, and what became of it by observe(). What is read is a Batch, a copy.
Its JSON (rows.pyx) is written without the GIL, as the log of decisions wants every request's.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.ref cimport PyObject, Py_XDECREF, Py_XINCREF
from libc.math cimport isfinite
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from lodestar_fast.core.lodestar cimport (
    LS_EVENTS, LS_REASONS, LS_UNKNOWN, ls_reason,
)
from lodestar_fast.core.record cimport (
    LS_RECORD_MARKS, ls_record_find, ls_record_keep, ls_record_status, ls_records_free,
    ls_records_new, ls_thought,
)
from lodestar_fast.core.rows cimport Text, put_row, quoted

from lodestar_fast.core.enums import Event, Reason

cdef Py_ssize_t MOST_NAMES = 8192  # instances that ever were, of which a record may still speak
cdef Py_ssize_t MOST_TEXT = 128    # characters of a model's name
cdef list REASONS = [f'"{reason.name.lower()}"'.encode() for reason in Reason]
cdef list EVENTS = [event.name.lower() for event in Event]


cdef void set_label(
    Label *label, PyObject *decider, PyObject *id, PyObject *path, PyObject *model, int attempt
) noexcept:
    cdef Label old = label[0]
    label.decider, label.id, label.path, label.model = decider, id, path, model
    label.attempt = attempt
    Py_XINCREF(decider)
    Py_XINCREF(id)
    Py_XINCREF(path)
    Py_XINCREF(model)
    Py_XDECREF(old.decider)
    Py_XDECREF(old.id)
    Py_XDECREF(old.path)
    Py_XDECREF(old.model)


@cython.final
cdef class Decisions:
    """The ring of one router. See decisions.pyi."""

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t max_instances, bint marks):
        self.records = ls_records_new(<uint32_t>capacity, marks)
        self.scores = <double *>calloc(<size_t>max_instances, sizeof(double))
        self.odds = <float *>calloc(<size_t>max_instances, sizeof(float))
        if self.records == NULL or self.scores == NULL or self.odds == NULL:
            raise MemoryError
        self.labels = <Label *>calloc(<size_t>capacity, sizeof(Label))
        if self.labels == NULL:
            raise MemoryError
        self.names = {}
        self.decider = ("", "")

    def __dealloc__(self):
        cdef Py_ssize_t place
        if self.labels != NULL:
            for place in range(self.records.capacity):
                set_label(&self.labels[place], NULL, NULL, NULL, NULL, 0)
            free(self.labels)
        ls_records_free(self.records)
        free(self.scores)
        free(self.odds)

    cdef int enter(self, Py_ssize_t slot, uint64_t epoch, str name) except -1:
        """An instance has come: records name it, also after it went."""
        if len(self.names) == MOST_NAMES:
            del self.names[next(iter(self.names))]
        self.names[<uint64_t>slot << 32 | epoch] = quoted(name)
        return 0

    cdef int keep(
        self, ls_router *r, Candidates c, Policy policy, Py_ssize_t choice, long long ticket,
        uint64_t version
    ) except -1:
        cdef ls_thought thought
        cdef Py_ssize_t place = <Py_ssize_t>(self.records.made % self.records.capacity)
        thought.seconds, thought.outside, thought.linear = c.seconds, c.outside, c.linear
        thought.scores = c.scores if c.seconds != NULL else NULL
        thought.odds, thought.margin = self.odds, <float>c.margin
        thought.fallback = c.fallback
        thought.upper, thought.tpot, thought.answer = c.upper, c.tpot, <float>c.answer
        thought.late, thought.unsure = c.late, <float>c.unsure
        thought.objective, thought.priced = <uint8_t>c.objective, c.priced
        ls_record_keep(
            r, &thought, <uint32_t>choice, <ls_reason>c.reason_code, <float>c.predicted, ticket,
            <uint32_t>version)
        cdef str mode = policy.mode()
        if self.policy is not policy or self.decider[1] is not mode:
            self.policy, self.decider = policy, (policy.name, mode)
        set_label(&self.labels[place], <PyObject *>self.decider, NULL, NULL, NULL, 0)
        return 0

    cpdef uint64_t label(
        self, bytes id, bytes path, object model=None, int attempt=1
    ) except? 0:
        if self.records.made == 0:
            return 0
        if model is not None and len(model) > MOST_TEXT:
            model = model[:MOST_TEXT]
        cdef Label *label = &self.labels[(self.records.made - 1) % self.records.capacity]
        set_label(
            label, label.decider, <PyObject *>id, <PyObject *>path, <PyObject *>model, attempt)
        return self.records.made

    cdef tuple label_at(self, Py_ssize_t place):
        """(id, path, model, attempt) of a place of the ring; None: nobody said."""
        cdef Label *label = &self.labels[place]
        if label.id == NULL:
            return None
        return <object>label.id, <object>label.path, <object>label.model, label.attempt

    cpdef void status(self, uint64_t serial, int status) noexcept:
        ls_record_status(self.records, serial, status)

    cdef Batch copy(self, uint64_t first, Py_ssize_t n):
        """n records from a serial on, all of which are there."""
        cdef Batch batch = Batch.__new__(Batch)
        cdef ls_record *row
        cdef Py_ssize_t i, k, place
        batch.rows_ = <ls_record *>malloc(<size_t>max(n, 1) * sizeof(ls_record))
        if self.records.marks != NULL:
            batch.marks_ = <uint64_t *>malloc(
                <size_t>max(n, 1) * LS_RECORD_MARKS * sizeof(uint64_t))
        if batch.rows_ == NULL or (self.records.marks != NULL and batch.marks_ == NULL):
            raise MemoryError
        for i in range(n):
            row = ls_record_find(self.records, first + <uint64_t>i)
            place = <Py_ssize_t>((first + <uint64_t>i - 1) % self.records.capacity)
            memcpy(&batch.rows_[i], row, sizeof(ls_record))
            if batch.marks_ != NULL:
                memcpy(
                    batch.marks_ + i * LS_RECORD_MARKS,
                    self.records.marks + place * LS_RECORD_MARKS, row.marks * sizeof(uint64_t))
            batch.labels.append(self.label_at(place))
            batch.deciders.append(<object>self.labels[place].decider)
            for k in range(row.n):
                batch.names.append(self.names.get(
                    <uint64_t>row.rows[k].seen.slot << 32 | row.rows[k].epoch, b'""'))
        batch.n = n
        return batch

    @property
    def capacity(self):
        return self.records.capacity

    @property
    def made(self):
        return self.records.made

    def last(self, Py_ssize_t limit):
        cdef uint64_t made = self.records.made
        cdef uint64_t n = min(<uint64_t>max(0, limit), made, <uint64_t>self.records.capacity)
        return self.copy(made - n + 1, <Py_ssize_t>n)

    def find(self, str id not None):
        cdef bytes wanted = id.encode()
        cdef uint64_t serial, made = self.records.made
        cdef uint64_t least = made - min(made, <uint64_t>self.records.capacity)
        for serial in range(made, least, -1):
            label = self.label_at((serial - 1) % self.records.capacity)
            if label is not None and label[0] == wanted:
                return self.copy(serial, 1)
        return self.copy(1, 0)

    def take(self):
        cdef uint64_t made = self.records.made, oldest = 1, k
        cdef uint64_t ended = self.records.ended, first = 0
        cdef Batch batch
        if made > self.records.capacity:
            oldest = made - self.records.capacity + 1
        if self.taken + 1 < oldest:
            self.lost += oldest - self.taken - 1
            self.taken = oldest - 1
        if ended > self.records.most_outcomes:
            first = ended - self.records.most_outcomes
        if self.ended < first:
            self.lost += first - self.ended
            self.ended = first
        batch = self.copy(self.taken + 1, <Py_ssize_t>(made - self.taken))
        self.taken = made
        batch.outcomes_ = <ls_outcome *>malloc(
            <size_t>(ended - self.ended + 1) * sizeof(ls_outcome))
        if batch.outcomes_ == NULL:
            raise MemoryError
        for k in range(self.ended, ended):
            batch.outcomes_[k - self.ended] = self.records.outcomes[
                k % self.records.most_outcomes]
        batch.ended = <Py_ssize_t>(ended - self.ended)
        self.ended = ended
        return batch


@cython.final
cdef class Batch:
    """Decisions, oldest first. See decisions.pyi."""

    def __cinit__(self):
        self.labels, self.deciders, self.names = [], [], []

    def __init__(self):
        raise TypeError("only Decisions makes batches")

    def __dealloc__(self):
        free(self.rows_)
        free(self.marks_)
        free(self.outcomes_)

    def __len__(self):
        return self.n

    def rows(self, double since=0.0):
        cdef list heads = [
            head_of(label, decider)
            for label, decider in zip(self.labels, self.deciders, strict=True)
        ]
        cdef list out = []
        cdef Text text
        cdef Py_ssize_t i, k, used = 0
        cdef size_t *ends = <size_t *>malloc(<size_t>(self.n + 1) * sizeof(size_t))
        cdef const char **names = <const char **>malloc(
            <size_t>(len(self.names) + 1) * sizeof(char *))
        cdef const char **starts = <const char **>malloc(<size_t>(self.n + 1) * sizeof(char *))
        cdef const char *reasons[LS_REASONS]
        text.data, text.size, text.room, text.failed = NULL, 0, 0, False
        if ends == NULL or names == NULL or starts == NULL:
            free(ends)
            free(names)
            free(starts)
            raise MemoryError
        for k in range(len(self.names)):
            names[k] = PyBytes_AS_STRING(self.names[k])
        for i in range(self.n):
            starts[i] = PyBytes_AS_STRING(heads[i])
        for k in range(LS_REASONS):
            reasons[k] = PyBytes_AS_STRING(REASONS[k])
        try:
            with nogil:
                for i in range(self.n):
                    put_row(&text, &self.rows_[i], starts[i], names + used, reasons, since)
                    used += self.rows_[i].n
                    ends[i] = text.size
            if text.failed:
                raise MemoryError
            for i in range(self.n):
                used = <Py_ssize_t>(ends[i - 1] if i else 0)
                out.append(PyBytes_FromStringAndSize(
                    text.data + used, <Py_ssize_t>ends[i] - used))
        finally:
            free(text.data)
            free(ends)
            free(names)
            free(starts)
        return out

    def serials(self):
        return [self.rows_[i].serial for i in range(self.n)]

    def marks(self, Py_ssize_t i):
        if not 0 <= i < self.n or self.marks_ == NULL:
            return []
        return [self.marks_[i * LS_RECORD_MARKS + k] for k in range(self.rows_[i].marks)]

    def outcome(self, Py_ssize_t i):
        if not 0 <= i < self.n or self.rows_[i].outcome.event >= LS_EVENTS:
            return None
        return as_dict(&self.rows_[i].outcome)

    def outcomes(self):
        return [
            (self.outcomes_[i].serial, as_dict(&self.outcomes_[i])) for i in range(self.ended)
        ]


cdef dict as_dict(const ls_outcome *o):
    return {
        "event": EVENTS[o.event],
        "status": o.status or None,
        "ttft": o.ttft if isfinite(o.ttft) else None,
        "e2e": o.e2e if isfinite(o.e2e) else None,
        "prompt_tokens": o.prompt_tokens or None,
        "cached_tokens": None if o.cached_tokens == LS_UNKNOWN else o.cached_tokens,
        "output_tokens": o.output_tokens,
    }


cdef bytes head_of(tuple label, tuple decider):
    """The members of a row that are Python's: a JSON object without its end."""
    id, path, model, attempt = label if label is not None else (None, None, None, 1)
    return b'{"id":%b,"path":%b,"model":%b,"try":%d,"policy":%b,"mode":%b' % (
        b"null" if id is None else quoted(id.decode("utf-8", "replace")),
        b"null" if path is None else quoted(path.decode("utf-8", "replace")),
        b"null" if model is None else quoted(model),
        attempt,
        quoted(decider[0]),
        quoted(decider[1]),
    )
