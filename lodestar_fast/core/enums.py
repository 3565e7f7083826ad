"""Why and what, as numbers that C, Cython, samples and metrics share (csrc/lodestar.h)."""

from __future__ import annotations

from enum import IntEnum


class Reason(IntEnum):
    """Why an instance was chosen. The lower-case name is the metric label."""

    LEARNED = 0  # the model's choice
    GUARD = 1  # the model's gain was inside the margin: the fallback heuristic's choice stands
    COLD = 2  # no model yet: plain physics, within the margin of the fallback heuristic
    OUT_OF_RANGE = 3  # the chosen row is outside what training has seen: no MLP correction
    EXPLORE = 4  # chosen to learn something
    HEURISTIC = 5  # the configured policy is a heuristic
    ONLY_ONE = 6  # a single candidate
    ERROR = 7  # the policy raised: fewest requests in flight, or the fallback's choice
    SHADOW = 8  # mode shadow: the fallback heuristic decides, the model is only asked
    CONTROL = 9  # the fallback heuristic's share of the requests: canary, or a trial
    DEMOTED = 10  # the watchdog trusts the model no more: the fallback heuristic
    ABSURD = 11  # the model's prediction was no number of seconds: the fallback heuristic


class Event(IntEnum):
    """What became of a dispatched request."""

    FIRST_TOKEN = 0  # the first byte that carries a token arrived
    TOKENS = 1  # `tokens` more output tokens arrived
    USAGE = 2  # the engine said: `tokens` prompt tokens, of them `cached` from its cache
    DONE = 3  # final: complete; tokens = output tokens if known, else 0
    FAILED = 4  # final: the engine failed
    ABANDONED = 5  # final: the client left
    TIMEOUT = 6  # final: gave up waiting for the engine
