"""What an engine on a given GPU costs and holds: the coefficients of the engine model.

Read by sim/engine (virtual and real time), by the verbs that take a fleet, and by reports that need
an idle TTFT to compare with. Nothing here simulates anything.

One iteration of an engine takes, in milliseconds,

    T = h + (w^q + (c N)^q)^(1/q) + a A + k K + s R

    N  tokens through the linear layers: new prefill tokens plus one for each decoding request
    A  query-key pairs of prefill, in millions: sum over chunks of n (context + n / 2)
    K  contexts of the decoding requests, in thousands of tokens
    R  requests in the batch

    w  reading the weights once (memory bound)         k  reading the KV cache
    c  linear layers, per token (compute bound)        s  sampling and LM head, per request
    a  prefill attention                               h  host overhead of a step

The power mean with q = 1.8 is a soft maximum: where chunked prefill meets decode (64 to 512 tokens)
neither bound alone holds. Fitted on operator tables it is within 2.4 to 3.6 % on unseen batches;
a hard maximum is 5 to 8 % off. On hardware that nobody calibrated, expect 20 % in absolute terms.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from lodestar_fast.errors import ConfigError

BLOCK_TOKENS = 16  # vLLM's default block on GPUs
LLAMA3_CONTEXT = 131_072  # tokens; longer than most caches here, so the cache is the limit
MAX_BLOCKS = 1 << 24  # 268 million tokens, 400 MB of bookkeeping: a typing error, not a cache
COEFFICIENTS = ("w", "c", "a", "k", "s", "h")


@dataclasses.dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: cost coefficients in milliseconds (units in the module header), sizes, flags.

    chunked False means the scheduler of vLLM V0: whole prompts, batches of prefill only, decodes
    waiting meanwhile. A spec that cannot be (negative cost, cache under a block) is a ConfigError.
    """

    gpu: str
    w: float
    c: float
    a: float
    k: float
    s: float
    h: float = 1.0
    q: float = 1.8
    kv_tokens: int = 36_000
    prefix_caching: bool = True
    chunked: bool = True
    max_batched_tokens: int = 2_048  # default of the vLLM releases modelled (0.8 to 0.11)
    max_seqs: int = 256
    context: int = LLAMA3_CONTEXT
    block: int = BLOCK_TOKENS

    def __post_init__(self) -> None:
        for name in COEFFICIENTS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"engine {self.gpu}: {name} must be at least 0, got {value}")
        if not (math.isfinite(self.q) and self.q >= 1):
            raise ConfigError(f"engine {self.gpu}: q must be at least 1, got {self.q}")
        for name in ("max_batched_tokens", "max_seqs", "context", "block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine {self.gpu}: {name} must be at least 1")
        if not self.block <= self.kv_tokens <= MAX_BLOCKS * self.block:
            raise ConfigError(
                f"engine {self.gpu}: kv_tokens must be one to {MAX_BLOCKS} blocks of {self.block}, "
                f"got {self.kv_tokens}"
            )
        if self.w + self.h <= 0:
            raise ConfigError(f"engine {self.gpu}: w + h must be above 0: steps must take time")

    @property
    def blocks(self) -> int:
        """Whole blocks in the KV cache."""
        return self.kv_tokens // self.block

    @property
    def reserved_blocks(self) -> int:
        """Blocks that admission leaves to the decodes there are: V0's watermark of 1 %."""
        return 0 if self.chunked else self.blocks // 100

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus output, in tokens: the model's context or what the cache holds."""
        return min(self.context, (self.blocks - self.reserved_blocks) * self.block)

    def scaled(self, **factors: float) -> EngineSpec:
        """The same engine with the named coefficients multiplied: scaled(w=1.25, c=0.8)."""
        for name in factors:
            if name not in COEFFICIENTS:
                raise ConfigError(f"no coefficient {name!r}; there are {', '.join(COEFFICIENTS)}")
        return dataclasses.replace(self, **{n: getattr(self, n) * f for n, f in factors.items()})

    def iteration_seconds(
        self, tokens: float, pairs: float, decode_context: float, requests: int
    ) -> float:
        """Duration of one step in seconds; tokens and pairs are plain numbers here."""
        linear: float = (self.w**self.q + (self.c * tokens) ** self.q) ** (1 / self.q)
        rest = self.a * pairs / 1e6 + self.k * decode_context / 1e3 + self.s * requests
        return (self.h + linear + rest) / 1e3

    def idle_ttft(self, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds to the first token of a prompt on this engine when it has nothing else to do."""
        done, seconds = min(cached_tokens, prompt_tokens - 1), 0.0
        chunk = self.max_batched_tokens if self.chunked else prompt_tokens
        while done < prompt_tokens:
            n = min(chunk, prompt_tokens - done)
            seconds += self.iteration_seconds(n, n * (done + n / 2), 0, 1)
            done += n
        return seconds


# Llama-3-8B, 16-bit weights, one GPU an engine. KV capacity at a memory utilisation of 0.9.
# "fit": regressed on measured operator tables of vLLM 0.14 and 0.24 (AIConfigurator 0.12 data,
# Apache-2.0); "inferred": scaled from neighbours by peak FLOPS and bandwidth, treat as uncertain.
# h = 1 ms: vLLM V1 before async scheduling (0.8 to 0.11).
_TABLE = (
    # Inferred: MFU 0.6, MBU 0.82; cache inferred.
    EngineSpec("a10", w=30.5, c=0.19, a=6.8, k=0.27, s=0.04, kv_tokens=32_000),
    # w, c, k, s from Vidur-fork profiles of Llama-2-7B and Qwen2-7B (0.127 ms a token x 1.078);
    # a as on the A100 by peak FLOPS. Cache inferred; a card of equal size held 23,648 to 31,232
    # tokens at longer maximal lengths (vLLM issue 10517).
    EngineSpec("a30", w=20.5, c=0.137, a=5.2, k=0.155, s=0.04, kv_tokens=36_000),
    # w, c from the Vidur profile (MIT), rest inferred; cache as on the other 48 GB cards.
    EngineSpec("a40", w=27.6, c=0.139, a=5.6, k=0.235, s=0.02, kv_tokens=190_000),
    # A100-80 SXM. Fit, mean error 2.8 %.
    EngineSpec("a100", w=11.4, c=0.0579, a=2.71, k=0.083, s=0.009, kv_tokens=440_000),
    # Inferred: MFU 0.8; bandwidth as published.
    EngineSpec("h20", w=4.9, c=0.122, a=4.5, k=0.041, s=0.004, kv_tokens=565_000),
    # H100-80 SXM. Fit, 3.0 %; in a closed loop the median TPOT error over 42 points is 2 %.
    EngineSpec("h100", w=6.62, c=0.0202, a=0.795, k=0.0417, s=0.0033, kv_tokens=440_000),
    # Fit, 3.0 %.
    EngineSpec("h200", w=5.19, c=0.0199, a=0.816, k=0.0303, s=0.0040, kv_tokens=895_000),
    # Fitted to the log of a real vLLM deployment that tests/test_calibrate.py replays, with hits as
    # its gateway estimated them; cache inferred.
    EngineSpec("l20", w=18.5, c=0.145, a=4.5, k=0.15, s=0.10, kv_tokens=190_000),
    # Fit, 3.2 %.
    EngineSpec("l40s", w=23.5, c=0.0692, a=2.87, k=0.189, s=0.0038, kv_tokens=190_000),
    # V100-32. Inferred, uncertain by 30 %: 80 % of 112 TFLOPS and no FlashAttention. vLLM cannot
    # do prefix caching or chunked prefill on Volta in FP16 (issues 11352, 13738), so this is V0 in
    # eager mode: h = 7 ms. Unchunked, vLLM's budget defaults to the maximal model length; 30,000
    # is the setting of the paper that we compare with. A longer prompt is run alone.
    EngineSpec(
        "v100", w=22, c=0.167, a=15, k=0.35, s=0.05, h=7.0, kv_tokens=68_000,
        prefix_caching=False, chunked=False, max_batched_tokens=30_000,
    ),
)  # fmt: skip

GPUS: dict[str, EngineSpec] = {entry.gpu: entry for entry in _TABLE}

# Other models, regressed on the same operator tables (mean error 2.4 to 3.6 %). Caches inferred:
# the memory that Llama-3-8B leaves on the GPU, less the difference in weights.
# Qwen2.5-7B: 57,344 B of KV a token.
_QWEN = (
    EngineSpec("a100", w=10.8, c=0.0549, a=1.96, k=0.040, s=0.0063, kv_tokens=1_020_000),
    EngineSpec("h100", w=6.06, c=0.0190, a=0.621, k=0.0189, s=0.0005, kv_tokens=1_020_000),
    EngineSpec("h200", w=4.76, c=0.0186, a=0.651, k=0.0134, s=0.0014, kv_tokens=2_060_000),
    EngineSpec("l40s", w=22.1, c=0.0642, a=2.37, k=0.086, s=0.0010, kv_tokens=448_000),
)
# Llama-3-70B, an engine being four GPUs (TP 4): 327,680 B a token. All-reduce is assumed: 12 us +
# 180 GB/s on A100, 10 us + 300 GB/s on the others.
_LLAMA_70B = (
    EngineSpec("a100", w=30.2, c=0.155, a=3.14, k=0.0585, s=0.021, kv_tokens=470_000),
    EngineSpec("h100", w=16.6, c=0.0573, a=1.03, k=0.0271, s=0, kv_tokens=470_000),
    EngineSpec("h200", w=13.4, c=0.0564, a=1.04, k=0.0196, s=0, kv_tokens=1_190_000),
)
MODEL = "llama-3-8b"
MODELS: dict[str, dict[str, EngineSpec]] = {
    MODEL: GPUS,
    "qwen2.5-7b": {entry.gpu: entry for entry in _QWEN},
    "llama-3-70b": {entry.gpu: entry for entry in _LLAMA_70B},
}


def spec(gpu: str, *, model: str = MODEL, **overrides: Any) -> EngineSpec:
    """The engine of that GPU, with fields replaced. Unknown GPU, model or field: ConfigError."""
    table = MODELS.get(model)
    if table is None:
        raise ConfigError(f"unknown model {model!r}; known are {', '.join(MODELS)}")
    base = table.get(gpu.strip().lower())
    if base is None:
        known = f"known are {', '.join(table)}" + (f" for {model}" if model != MODEL else "")
        raise ConfigError(f"unknown GPU {gpu!r}; {known}")
    unknown = overrides.keys() - {field.name for field in dataclasses.fields(EngineSpec)}
    if unknown:
        raise ConfigError(f"an engine has no setting {', '.join(sorted(unknown))}")
    return dataclasses.replace(base, **overrides)


MAX_FLEET = 4_096  # engines; a typing error such as 20000xa30 should not eat the machine
_PART = re.compile(r"(?:(\d+)x)?([a-z][a-z0-9]*)", re.IGNORECASE)


def parse_fleet(text: str, **overrides: Any) -> list[EngineSpec]:
    """A fleet such as "2xa30+1xl20" (or "a30+h100"), in the order written.

    overrides go to every engine, as in spec(). A ConfigError names the part that is wrong.
    """
    fleet: list[EngineSpec] = []
    for part in text.split("+"):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"--fleet {text!r}: {part.strip()!r} is not COUNTxGPU, as in 2xa30")
        count = int(match[1] or 1)
        try:
            engine = spec(match[2], **overrides)
        except ConfigError as error:
            raise ConfigError(f"--fleet {text!r}: in {part.strip()!r}: {error}") from None
        if count < 1:
            raise ConfigError(f"--fleet {text!r}: {part.strip()!r} has a count of 0")
        if len(fleet) + count > MAX_FLEET:
            raise ConfigError(f"--fleet {text!r}: more than {MAX_FLEET} engines")
        fleet += [engine] * count
    return fleet
