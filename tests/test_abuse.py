"""What clients and engines do must not teach the learner nonsense. The soak does more of it."""

from __future__ import annotations

from tests.soak.abuse import aborts, holds, slow_engine, slow_readers
from tests.soak.crowds import figures_of


def test_aimed_aborts_do_not_starve_their_target() -> None:
    assert holds(figures_of(aborts("linear", 60, 100)))


def test_slow_readers_do_not_starve_their_target() -> None:
    assert holds(figures_of(slow_readers("linear", 15, 100)))


def test_a_slow_engine_gets_less_and_more_again_when_it_recovers() -> None:
    assert holds(figures_of(slow_engine("linear", 120, 200)))
