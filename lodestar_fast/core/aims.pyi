"""Types of core/aims.pyx."""

from __future__ import annotations

class Aims:
    """Scores for requests that want more than the policy's default, an early first token.

    plain is the default score: T and what it costs others, seconds. With objective e2e

        score = plain + (answer - 1) tpot + own n_decoding / 2

    answer: tokens of an answer in the mean; tpot: predicted seconds a token; own: seconds to
    compute the prompt, which hold up those who are answering. The fallback's choice stands unless
    the gain is more than the margin takes of its plain score, as by default.

    With an SLO the candidates that are predicted to keep it, the upper quantile of the time to
    first token and the time per token, come first. Among those

        score = plain - 0.9 T

    what it costs others, for one's own wait is short enough: the quick and idle are kept for who
    needs them. If none keeps it, the one that is off by least, with what it costs others. An SLO
    goes before the objective. What is not predicted yet is no obstacle.
    """

    def __init__(self, *, objective: str = "ttft") -> None:
        """Raises ValueError for an objective other than ttft, e2e."""
    @property
    def objective(self) -> str: ...
