"""The tokens of an iteration reach the router: one call of it for each, in the engine's order.

Apart from sim/run because it is what a run does most, a few million times in ten minutes of eight
engines; what is once a request stays there.
"""

from lodestar_fast.core.lodestar cimport LS_TOKENS
from lodestar_fast.core.router cimport Router


def deliver(
    Router router not None, list made not None, list tickets not None, double now, began, ended
):
    cdef long long rid, generated
    for each in made:
        rid, generated, finished = <tuple>each
        if generated > 1:
            router.observe(tickets[rid], LS_TOKENS, now, 1)
        else:
            began(rid, now)
        if finished:
            ended(rid, now)
