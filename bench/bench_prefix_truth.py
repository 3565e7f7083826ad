"""What the router believes an engine has cached, against what the engine finds.

    python -m bench.bench_prefix_truth TRACE --block-tokens 50 --fleet 8xa30 --rate 14

The real router before simulated engines in virtual time, three times: `full` as it is; `told
nothing`: engines do not report their capacity, answers say what was cached; `blind`: neither, so
the index only grows. Error: mean of |believed - found| over the prompt; bias: the same with sign;
both in per cent of the prompt. The first tenth of the requests is left out.
"""

from __future__ import annotations

import argparse
from statistics import fmean

from lodestar_fast.core import Event
from lodestar_fast.core.policies import POLICIES
from lodestar_fast.sim.gpus import parse_fleet
from lodestar_fast.sim.jobs import Outcome, make_jobs
from lodestar_fast.sim.run import Simulation
from lodestar_fast.sim.workload import read_trace

MODES = ("full", "told nothing", "blind")


class Silent(Simulation):
    """Its engines never say what was cached."""

    def _ended(self, index: int, now: float) -> None:
        o = self.outcomes[index]
        o.e2e = now - o.arrival
        self.router.observe(self._tickets[index], Event.DONE, now, o.output_tokens)
        self._end(index, failed=False)


def measure(mode: str, args: argparse.Namespace) -> list[Outcome]:
    """The outcomes of one run, without its first tenth and what failed."""
    trace = read_trace(args.trace).rescaled(args.block_tokens, args.max_input, 0.5)
    jobs = make_jobs(trace.timed(args.seed, args.rate).requests[: args.requests or None])
    fleet = parse_fleet(args.fleet)
    world = (Silent if mode == "blind" else Simulation)(
        jobs, fleet, POLICIES[args.policy](), seed=args.seed
    )
    if mode != "full":
        for slot in world.router.slots():
            world.router.configure_instance(slot, kv_tokens=0, prefix_caching=True)
    done = [outcome for outcome in world.run() if not outcome.error]
    return done[len(done) // 10 :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("trace")
    parser.add_argument("--fleet", default="8xa30")
    parser.add_argument("--policy", default="prefix_cache", choices=sorted(POLICIES))
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second [10]")
    parser.add_argument("--block-tokens", type=int, default=0)
    parser.add_argument("--max-input", type=int, default=0)
    parser.add_argument("--requests", type=int, default=0, help="at most so many [all]")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print("                error    bias  believed   found  mean TTFT")
    for mode in MODES:
        outcomes = measure(mode, args)
        off = [(o.hit_tokens - o.cached_tokens) / o.prompt_tokens for o in outcomes]
        total = sum(o.prompt_tokens for o in outcomes)
        print(
            f"{mode:13} {fmean(map(abs, off)):7.2%} {fmean(off):+7.2%}"
            f" {sum(o.hit_tokens for o in outcomes) / total:9.2%}"
            f" {sum(o.cached_tokens for o in outcomes) / total:7.2%}"
            f" {fmean(o.ttft for o in outcomes):8.2f} s"
        )


if __name__ == "__main__":
    main()
