"""The states of an exchange and the steps between them: the law that exchange.pyx keeps."""

from lodestar_fast.errors import InvariantError

# state: {step: next state}. idle: nothing in hand. body: the head is in, the body not yet. queued:
# waiting for a place. connect: an instance is chosen, the connection to it not there yet. wait: the
# request is sent, nothing of the answer has gone to the client. stream: some of it has.
TRANSITIONS = {
    "idle": {"head": "body"},
    "body": {"enqueue": "queued", "dispatch": "connect", "end": "idle"},
    "queued": {"dispatch": "connect", "end": "idle"},
    "connect": {"sent": "wait", "again": "connect", "end": "idle"},
    "wait": {"again": "connect", "relay": "stream", "end": "idle"},
    "stream": {"end": "idle"},
}
STATES = tuple(TRANSITIONS)  # in the order of State
STEPS = ("head", "enqueue", "dispatch", "sent", "again", "relay", "end")  # in the order of Step

cdef int _next[<int> STATES_N][<int> STEPS_N]
for _state, _row in enumerate(TRANSITIONS.values()):
    for _step, _name in enumerate(STEPS):
        _next[<int> _state][<int> _step] = STATES.index(_row[_name]) if _name in _row else -1


cdef int after(State state, Step step) except -1:
    """The state that follows. Raises InvariantError if the step is not allowed."""
    cdef int following = _next[<int> state][<int> step]
    if following < 0:
        raise InvariantError(f"step {STEPS[<int> step]} in state {STATES[<int> state]}")
    return following


cdef str name_of(State state):
    return STATES[<int> state]


def follow(str state, str step):
    return STATES[after(<State> <int> STATES.index(state), <Step> <int> STEPS.index(step))]
