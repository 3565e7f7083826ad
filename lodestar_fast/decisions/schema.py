"""A decision as the router writes it: one JSON object, a row. Times are seconds.

    id, path, model        the request; null if nobody told. try: 1, 2, ... of that request
    policy, mode           who decides, and the mode that was set ("" if it has none)
    t, at                  when: since 1970, and on the router's clock
    in, bytes, stream      prompt tokens (as given or estimated), its bytes; whether it streams
    reason                 core.Reason in lower case
    version                of the weights behind the prediction; 0: no model was asked
    predicted, margin      TTFT of the chosen one; how much better the best score must be than the
                           fallback's for the model to decide
    unsure                 log factor that moving a whole prefix must be worth; null: no learned
                           policy was asked
    error_low, error_high  log(measured / predicted) of earlier decisions was between, for 90 %
    objective, slo_ttft, slo_tpot, slo_met, answer   only of a request that wanted more than an
                           early first token: ttft | ttft+tpot | e2e; its SLO, null: none; whether
                           the chosen one was predicted to keep it, null: nobody knew; tokens that
                           were expected of its answer, null: not known. Then its candidates have
                           upper: 9 of 10 first tokens come within; tpot: seconds a token, null: not
                           known; price, null: it did not count; late: how many others are expected
                           to miss their SLO for its sake, null: it has none itself
    linear                 coefficients of the physical part by feature; null without a model
    candidates_total       how many could be chosen; at most 16 of them are in candidates
    chosen, fallback, best, longest_hit      which of those; null: none
    candidates             name: the instance; hit, own, queued: tokens; hit_blocks; waiting,
                           inflight: requests; speed: s per token; occupancy; expected: TTFT by
                           plain physics; predicted, score: the model's, null without;
                           odds: the probability of being chosen, null: not known;
                           outside: of the range of training; x: the features in natural units
    h                      (log only) prefix blocks as a trace has them: id, length, ...; a block
                           is meta.prefix_bytes long, the first 256 are told; numbers are of one
                           process, which meta.since tells
    outcome                null until known: event (core.Event in lower case), status (HTTP),
                           ttft, e2e, prompt_tokens, cached_tokens, output_tokens

A log is JSON lines: first {"meta": {"kind": "decisions", "schema": 1, ...}}, then rows.
"""

from __future__ import annotations

from typing import Any, Final

SCHEMA: Final = 1
MARK_BLOCKS: Final = 4  # LS_MARK_BLOCKS in csrc/record.h: router blocks to a prefix block of `h`
KIND: Final = "decisions"

Row = dict[str, Any]
