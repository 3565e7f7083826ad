from collections.abc import Sequence
from typing import final

from lodestar_fast.sim.blocks import BlockPool
from lodestar_fast.sim.gpus import EngineSpec

@final
class Engine:
    """A simulated vLLM engine. Times are seconds on any axis; the caller's clock, real or virtual.

    spec: costs, sizes and flags. seed: of the jitter, which multiplies the duration of each
    iteration by a log-normal factor of that spread (0: none). Equal calls give equal results.
    """

    spec: EngineSpec
    slow: float
    """Multiplies the duration of iterations that start from now on; 1.0 is healthy."""
    pool: BlockPool
    """The KV cache, for gauges and tests."""
    waiting: int
    """Requests in the queue, preempted ones among them."""
    preemptions: int
    prompt_tokens: int
    """Prompt tokens of requests that had their first token, hits included."""
    generation_tokens: int
    prefix_queries: int
    """Prompt tokens looked up in the prefix cache, at each request's first admission."""
    prefix_hits: int
    """Tokens of these that were found."""
    @property
    def running(self) -> int:
        """Requests admitted to the batch, in prefill or decoding."""
    @property
    def kv_usage(self) -> float:
        """Share of blocks referenced by requests, 0 to 1; cached blocks do not count."""
    finished: dict[int, int]
    """Cached tokens of the requests that the latest call finished, in their order."""
    def __init__(self, spec: EngineSpec, seed: int = 0, jitter: float = 0.0) -> None: ...
    def submit(
        self,
        rid: int,
        block_hashes: Sequence[int],
        prompt_tokens: int,
        output_tokens: int,
        now: float,
    ) -> None:
        """Queue a request; an idle engine starts an iteration at once.

        block_hashes: chained hashes of the prompt's full blocks from the first on (hash_prompt);
        an array "Q" or uint64 array is kept, not copied, and must not change. Blocks beyond them
        are private to this request. output_tokens: it ends after exactly as many.
        ValueError: rid is still here, a length is below 1, the request can never fit the cache, or
        an iteration that ended before now was not stepped.
        """
    def cancel(self, rid: int, now: float) -> bool:
        """Drop a request in any state and free its blocks; False if it is not (any more) here.

        The running iteration keeps its end: the GPU is at it. So `now` moves nothing yet.
        """
    def next_time(self) -> float:
        """When the running iteration ends; inf if the engine is idle."""
    def step(self, now: float) -> list[tuple[int, int, bool]]:
        """Complete the running iteration and start the next at its end (not at `now`).

        Returns (rid, tokens generated so far, finished) of each request that got a token.
        Called late, call again while next_time() <= now. ValueError if nothing ends by now.
        """
    def first_token(self, rid: int, limit: float) -> float:
        """Step until the first token of rid, at most to limit: when it comes; inf if not by then.

        As calling step() over and over, but nothing is told of the other requests.
        """
    def cached_tokens(self, rid: int) -> int:
        """Prompt tokens found in the cache at admission, 0 before it.

        Known until the step after the one that finished the request; KeyError after that.
        """
    def copy(self) -> Engine:
        """An independent engine in the same state, jitter included: O(blocks + requests)."""
