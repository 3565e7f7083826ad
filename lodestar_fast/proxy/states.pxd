"""The states of an exchange. See states.pyx."""


cdef enum State:
    IDLE
    BODY
    QUEUED
    CONNECT
    WAIT
    STREAM
    STATES_N

cdef enum Step:
    HEAD
    ENQUEUE
    DISPATCH
    SENT
    AGAIN
    RELAY
    END
    STEPS_N


cdef int after(State state, Step step) except -1
cdef str name_of(State state)
