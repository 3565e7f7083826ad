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

    With an SLO the score is in waits as long as its limit u (of TTFT; a second if it has none):

        score = u log(1 + W / u) + 2 u (1 - P + late + share)
        W     = plain + bill - 0.9 P_ttft T

    P = P_ttft P_tpot: how likely it is in time, from the upper quantile of TTFT, and from the time
    per token with a standard deviation of a quarter of the limit. late: of the requests there that
    ask for a time per token, how many will miss it because this one's prompt is computed between
    their tokens. What each of them is ahead of its limit is known in sum (csrc/pace.c), what it
    will need is the mean answer at the engine's pace; so late is large where many are about to
    miss, small where all have time, and where all are lost. There go the long prompts, and the
    others keep what they asked for. share: the work would displace other work wherever it is done,
    so its uncached tokens are charged at the fleet's mean of late per token: prefixes stay where
    they are cached. One's own wait counts a tenth as far as it is in time, and by its logarithm:
    who is late anyway may be later. The fallback's choice stands unless the gain is more than the
    margin takes of its wait. An SLO goes before the objective. What is not predicted yet is no
    obstacle, and costs nothing.

    tpot is with an SLO 0.3 of what is predicted and 0.7 of what the answers under way on that
    engine have taken so far: a ring of the last iterations tells too little of the next ones.
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
