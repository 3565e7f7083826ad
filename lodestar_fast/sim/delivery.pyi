from collections.abc import Callable

from lodestar_fast.core.router import Router

def deliver(
    router: Router,
    made: list[tuple[int, int, bool]],
    tickets: list[int],
    now: float,
    began: Callable[[int, float], None],
    ended: Callable[[int, float], None],
) -> None:
    """Observe a token for each (request, tokens so far, whether it was the last) of Engine.step().

    tickets: by request. began(request, now) is called in place of the first token's observation,
    ended(request, now) after the last one's.
    """
