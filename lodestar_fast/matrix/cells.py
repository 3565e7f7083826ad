"""The matrix: which fleets meet which workloads at which load, and what happens meanwhile.

A cell is a row of the table of results. Its rate is a share of saturation, which is the highest
rate that a clairvoyant router keeps up with (simulate/saturation.py); nothing in a cell depends on
the policies that are compared in it, and no setting of a policy depends on the cell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lodestar_fast.core.policies import POLICIES
from lodestar_fast.matrix.workloads import SESSIONS, Workload

OURS, PUBLISHED, CLAIRVOYANT = "lodestar", "lodestar-paper", "oracle"
TOLD = "lodestar:told=true"  # each request asks for what counts as in time
FALLBACK, WEAKEST = "lmetric", "least_request"

SECONDS = 300.0
HEADLINE_SEEDS, SEEDS, REST_SEEDS, QUICK_SEEDS = 20, 5, 3, 10
SCALE_SECONDS = 120.0
SATURATED = 0.97  # from this load on: medians, and ties within 20 %

A30 = "8xa30"
V100 = "7xa30+8xv100"
MIX = "4xa30+2xl20+1xh100"
H100 = "8xh100"
USERS = 40  # of the closed loop
UNIT = "4xa30+2xl20+2xh100"  # of the large mixed fleets

# Baselines that are to be beaten, by what they are told and from whom they come: core/policies.
HEURISTICS = (
    "least_request",
    "prefix_cache",
    "lmetric",
    "expected_completion",
    "dynamo",
    "preble",
    "llmd_sticky",
    "llmd_weighted",
    "prefix_threshold:threshold=0.2",
    "prefix_threshold:threshold=0.5",
    "prefix_threshold:threshold=0.8",
)
QUICK_HEURISTICS = HEURISTICS[:8]
ROBUST = (OURS, CLAIRVOYANT, PUBLISHED, *HEURISTICS[:4], "llmd_weighted")
# What the field has besides: in the table, with fewer seeds.
REST = (
    *(name for name in POLICIES if name not in {*HEURISTICS, OURS, PUBLISHED, "prefix_threshold"}),
    "oracle-stale",
    "oracle-altruistic",
)
VARIANTS = (
    "lodestar:model=linear",
    "lodestar:hidden=8",
    "lodestar:hidden=64",
    "lodestar:hidden=128",
    "lodestar:prior=false",
    "lodestar:buffer=strata",
    "lodestar:buffer=coreset",
    "lodestar:margin=1.0",
    "lodestar:margin=1.05",
    "lodestar:margin=1.2",
    "lodestar:load_weight=0",
    "lodestar:wait_weight=0",
    "lodestar:crowd_weight=0",
    "lodestar:spare_weight=0",
    "lodestar:affinity_weight=0",
    "lodestar:kv_weight=0",
    "lodestar:explore_share=0",
    "lodestar:round_seconds=0.25",
    "lodestar:round_seconds=5",
    "lodestar:round_seconds=30",
    "lodestar:min_samples=8",
    "lodestar:min_samples=512",
)


@dataclass(frozen=True)
class Cell:
    """load: as a share of saturation. events: lines of an events file, times in seconds. changes:
    fields of Plan. unit, times: the fleet whose saturation, times so many, is taken for this
    one's. marks: moments after which recovery is measured. note: what it is, and where it
    differs from the paper.
    """

    name: str
    block: str
    fleet: str
    work: Workload
    load: float
    note: str = ""
    claim: str = ""
    seeds: int = SEEDS
    seconds: float = SECONDS
    events: tuple[str, ...] = ()
    changes: tuple[tuple[str, Any], ...] = ()
    unit: str = ""
    times: float = 1.0
    marks: tuple[float, ...] = ()
    quick: bool = False
    base: str = ""  # of a robustness cell: the cell that it is a change of
    policies: tuple[str, ...] = (OURS, CLAIRVOYANT, PUBLISHED, *HEURISTICS)
    rest: tuple[str, ...] = ()  # further policies, with fewer seeds

    @property
    def saturated(self) -> bool:
        return self.load >= SATURATED

    @property
    def headline(self) -> bool:
        return self.seeds >= HEADLINE_SEEDS


HOMOGENEOUS = "mean 1.02-2.15x, P99 1.07-1.86x over AIBrix prefix-cache (8 A30)"
MIXED_CLAIM = "mean 1.25-4.38x, P99 1.32-4.42x over AIBrix prefix-cache (A30 + V100)"
PAPER_NOTE = {
    "conversation": "Mooncake conversation, 50 tokens a block, inputs to 10,000, outputs halved, "
    "as in the paper, of the first 6,000 requests. The paper: 8-12 and 20-22 req/s",
    "toolagent": "a synthetic stand-in of Mooncake's tool-and-agent trace, 100 tokens a block. The "
    "paper: the trace itself at 6-22 req/s",
    "azure_conv": "Azure 2023 conversation lengths, half of each prompt shared by ten requests",
    "azure_code": "Azure 2023 code lengths, 30 % of each prompt shared by ten; Poisson here",
    "sharegpt": "ShareGPT lengths, nothing shared; the paper analyses it and shows no routing",
    "sharing10": "SharingRatio 10 %, made after the artifact's description. The paper: 4-10 req/s",
    "sharing30": "SharingRatio 30 %",
    "sharing50": "SharingRatio 50 %",
    "sharing70": "SharingRatio 70 %",
    "mixed": "SharingRatio 10, 30, 50 and 70 % mixed. The paper: 6-10 req/s",
}
QUICK = {
    *("a30-conversation-75", "a30-conversation-90", "a30-conversation-97", "a30-mixed-90"),
    *("a30-toolagent-75", "a30-toolagent-90", "h100-agentic-75", "a30-switch", "mix-slow"),
    *("mix-conversation-75", "mix-conversation-90", "mix-servegen_mid-90"),
    *("v100-conversation-75", "v100-conversation-90", "v100-mixed-90"),
}
SHORT = {A30: "a30", V100: "v100", MIX: "mix", H100: "h100"}


def _headline(block: str, fleet: str, source: str, load: float, note: str, claim: str) -> Cell:
    name = f"{SHORT[fleet]}-{source}-{load * 100:.0f}"
    return Cell(
        name,
        block,
        fleet,
        Workload(source),
        load,
        note,
        claim,
        HEADLINE_SEEDS,
        policies=(OURS, TOLD, CLAIRVOYANT, PUBLISHED, *HEURISTICS),
    )


def _paper() -> list[Cell]:
    """The paper's own workloads on its two clusters."""
    cells = []
    for fleet, claim in ((A30, HOMOGENEOUS), (V100, MIXED_CLAIM)):
        for source, note in PAPER_NOTE.items():
            loads = {"conversation": (0.75, 0.9, 0.97), "toolagent": (0.75, 0.9)}.get(
                source, (0.9,)
            )
            for load in loads:
                cells.append(_headline("paper", fleet, source, load, note, claim))
    return cells


def _real() -> list[Cell]:
    conversation = "Mooncake conversation, rescaled as in the paper"
    agentic = "real coding agents' sessions, whole contexts, open loop"
    cells = [
        *(_headline("mixed", MIX, "conversation", x, conversation, "") for x in (0.75, 0.9, 0.97)),
        _headline("mixed", MIX, "toolagent", 0.9, "tool-and-agent stand-in", ""),
        _headline("mixed", MIX, "servegen_mid", 0.9, "ServeGen, middle-sized model, tenants", ""),
        _headline("real", A30, "servegen_small", 0.9, "ServeGen, small model, tenants", ""),
        _headline("real", H100, "conversation_full", 0.9, "Mooncake conversation as it is", ""),
        _headline("real", H100, "agentic", 0.75, agentic, ""),
    ]
    cached = _headline("real", V100, "conversation", 0.9, "prefix caching on the V100s too", "")
    engines = (("engine", (("prefix_caching", True),)),)
    return [*cells, replace(cached, name="v100cached-conversation-90", changes=engines)]


def _drift() -> list[Cell]:
    """What changes while it runs."""
    conversation, mixed = Workload("conversation"), Workload("mixed")

    def cell(name: str, fleet: str, work: Workload, note: str, **more: Any) -> Cell:
        return Cell(name, "change", fleet, work, more.pop("load", 0.75), note, **more)

    return [
        cell(
            "a30-bursts",
            A30,
            Workload("azure_code", own_times=True),
            "Azure code at its own times: gaps with a CV of 12.8",
            load=0.5,
        ),
        cell("a30-gamma", A30, replace(conversation, cv=4.0), "Gamma arrivals, CV 4"),
        cell(
            "mix-drift",
            MIX,
            Workload("servegen_mid", own_times=True),
            "ServeGen's day, squeezed: the rate drifts by itself",
        ),
        cell(
            "a30-switch",
            A30,
            Workload("conversation", "toolagent", 150.0),
            "conversation, then tool-and-agent from 150 s on",
            marks=(150.0,),
        ),
        cell(
            "a30-switch-sharing",
            A30,
            Workload("sharing5", "sharing50", 150.0),
            "SharingRatio 5 %, then 50 % from 150 s on, as in the paper",
            marks=(150.0,),
        ),
        cell(
            "a30-hot",
            A30,
            replace(mixed, hot=(120.0, 180.0, 0.4, 8192)),
            "from 120 to 180 s, 40 % of the requests begin with one prefix of 8,192 tokens",
            marks=(120.0, 180.0),
        ),
        cell(
            "a30-slow",
            A30,
            conversation,
            "one of eight A30 three times as slow from 100 to 200 s",
            events=('{"t":100,"slot":3,"slow":3.0}', '{"t":200,"slot":3,"slow":1.0}'),
            marks=(100.0, 200.0),
        ),
        cell(
            "mix-slow",
            MIX,
            conversation,
            "the H100 three times as slow from 100 to 200 s; it is two thirds of the fleet",
            load=0.4,
            events=('{"t":100,"slot":6,"slow":3.0}', '{"t":200,"slot":6,"slow":1.0}'),
            marks=(100.0, 200.0),
        ),
        cell(
            "a30-join",
            A30,
            conversation,
            "two A30 join at 150 s, cold; the load is of the eight",
            load=0.9,
            events=('{"t":150,"join":"a30"}', '{"t":150,"join":"a30"}'),
            marks=(150.0,),
        ),
        cell(
            "mix-join",
            MIX,
            conversation,
            "an H100 joins at 150 s, cold",
            load=0.9,
            events=('{"t":150,"join":"h100"}',),
            marks=(150.0,),
        ),
        cell(
            "a30-crash",
            A30,
            conversation,
            "an A30 crashes at 120 s and is back, empty, at 180 s",
            events=('{"t":120,"crash":2}', '{"t":180,"up":2}'),
            marks=(120.0, 180.0),
        ),
        cell(
            "a30-drain",
            A30,
            conversation,
            "an A30 is drained at 150 s",
            events=('{"t":150,"drain":2}',),
            marks=(150.0,),
        ),
    ]


def _robust(bases: dict[str, Cell]) -> list[Cell]:
    """Each a single change of a headline cell."""
    costs = {f: tuple((name, f) for name in "wcak") for f in (0.8, 1.25)}  # the rate follows
    scrape = ('{"t":0,"scrape_s":1.0}', '{"t":0,"scrape_loss":0.05}')
    cells = []
    for name in ("a30-conversation-90", "v100-conversation-90", "mix-conversation-90"):
        base = bases[name]
        overload = 1.3 / base.load
        changed: dict[str, tuple[str, dict[str, Any]]] = {
            "fast": (
                "coefficients x 0.8",
                {"changes": (("coefficients", costs[0.8]),), "times": 1 / 0.8},
            ),
            "costly": (
                "coefficients x 1.25",
                {"changes": (("coefficients", costs[1.25]),), "times": 1 / 1.25},
            ),
            "stale": ("a scrape a second, 5 % lost", {"events": scrape}),
            "frozen": (
                "one instance reports what it did at 30 s",
                {"events": ('{"t":30,"freeze":0}',)},
            ),
            "half-cache": ("half the KV cache", {"changes": (("kv_scale", 0.5),)}),
            "double-cache": ("twice the KV cache", {"changes": (("kv_scale", 2.0),)}),
            "noise": ("iterations vary by 15 %", {"changes": (("jitter", 0.15),)}),
            "far": ("100 ms from engine to router and client", {"changes": (("delay", 0.1),)}),
            "overload": (
                "1.3 times saturation from 100 to 160 s",
                {"work": replace(base.work, surge=(100.0, 160.0, overload)), "marks": (160.0,)},
            ),
        }
        for kind, (note, fields) in changed.items():
            cells.append(
                replace(
                    base,
                    name=f"{name}-{kind}",
                    block="robustness",
                    base=name,
                    note=note,
                    claim="",
                    seeds=SEEDS,
                    policies=ROBUST,
                    **fields,
                )
            )
    return cells


def _others() -> list[Cell]:
    sessions = Workload(SESSIONS, users=USERS)
    note = f"{USERS} users in real coding agents' sessions, closed loop with think time"
    cells = [Cell("h100-sessions", "sessions", H100, sessions, 0.75, note)]
    for copies, seeds in ((8, 5), (32, 3)):
        fleet = "+".join(f"{n * copies}x{gpu}" for n, gpu in ((4, "a30"), (2, "l20"), (2, "h100")))
        cells.append(
            Cell(
                f"mix{8 * copies}-conversation-90",
                "scale",
                fleet,
                Workload("conversation"),
                0.9,
                f"{8 * copies} engines, half A30, a quarter each L20 and H100; saturation "
                "is that of eight such engines, times as many",
                seeds=seeds,
                seconds=SCALE_SECONDS,
                unit=UNIT,
                times=copies,
                # The clairvoyant of 256 engines takes an hour for two minutes.
                policies=tuple(p for p in ROBUST if p != CLAIRVOYANT or copies <= 8),
            )
        )
    return cells


def matrix() -> dict[str, Cell]:
    """All cells, by name."""
    first = {cell.name: cell for cell in [*_paper(), *_real()]}
    cells = [*first.values(), *_drift(), *_robust(first), *_others()]
    full = {"a30-conversation-90", "v100-conversation-90", "mix-conversation-90"}
    ablated = {*full, "mix-servegen_mid-90"}
    out = {}
    for cell in cells:
        rest = (*(REST if cell.name in full else ()), *(VARIANTS if cell.name in ablated else ()))
        out[cell.name] = replace(cell, quick=cell.name in QUICK, rest=rest)
    assert len(out) == len(cells), "two cells of one name"
    return out


def quick(cells: dict[str, Cell]) -> dict[str, Cell]:
    """The subset that an hour is enough for: fewer seeds and policies, the same runs."""
    chosen = (OURS, TOLD, CLAIRVOYANT, PUBLISHED, *QUICK_HEURISTICS)
    return {
        name: replace(
            cell,
            seeds=QUICK_SEEDS,
            policies=tuple(p for p in chosen if p in cell.policies),
            rest=(),
        )
        for name, cell in cells.items()
        if cell.quick
    }
