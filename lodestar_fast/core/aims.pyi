"""Types of core/aims.pyx."""

from __future__ import annotations

class Aims:
    """Scores for requests that want more than the policy's default, an early first token.

    plain is the default score: T and what it costs others, seconds. In general

        score = plain + w ((answer - 1) tpot + own n_decoding / 2) + bill

    answer: tokens expected, the mean of answers or what the request allows if that is less;
    tpot: predicted seconds a token; own: seconds to compute the prompt, which hold up those who
    are answering. w is 0 with objective ttft, 1 with e2e, tpot_weight with ttft+tpot. The
    fallback's choice stands unless the gain is more than the margin takes of its plain score, as
    by default.

        bill = price_weight price (own + (answer - 1) tpot / (n_decoding + 1))

    what the request takes of the engine's time, all of it while its prompt is computed and an equal
    part while it answers among others, as seconds of waiting: price_weight is how many an engine's
    second at price 1 is worth. 0: prices do not count.

    With an SLO the candidates that are predicted to keep it, the upper quantile of the time to
    first token and the time per token, come first. Among those

        score = plain - 0.9 T + bill

    what it costs others, for one's own wait is short enough: the quick and idle are kept for who
    needs them, and the dear ones with a price_weight. If none keeps it, the one that is off by
    least, with what it costs others. An SLO goes before the objective. What is not predicted yet
    is no obstacle, and costs nothing.
    """

    def __init__(
        self, *, objective: str = "ttft", tpot_weight: float = 0.3, price_weight: float = 0.0
    ) -> None:
        """objective: ttft, ttft+tpot or e2e. Raises ValueError for another, or a weight below 0."""
    @property
    def objective(self) -> str: ...
    @property
    def tpot_weight(self) -> float: ...  # w above, as the objective has it
    @property
    def price_weight(self) -> float: ...
