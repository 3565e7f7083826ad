"""Many clients at once, most of them a nuisance. The soak runs the same with its full figures."""

from __future__ import annotations

from tests.soak.crowds import Figures, burst, drippers, figures_of, idle, readers, stream


def left_nothing(figures: Figures) -> bool:
    return figures["descriptors_left"] <= 70


def test_idle_clients_cost_little_and_hold_up_nobody() -> None:
    figures = figures_of(idle(200))
    assert figures["served"] and figures["open"] >= 200
    assert figures["during_mb"] - figures["before_mb"] < 16 and left_nothing(figures)


def test_slow_senders_are_told_so_at_the_timeout_and_hold_up_nobody() -> None:
    figures = figures_of(drippers(30, 50, 1.0))
    assert figures["gone_408"] == 30 and left_nothing(figures)


def test_a_burst_is_answered() -> None:
    figures = figures_of(burst(150, 0.3))
    assert figures["answered_200"] == 150 and left_nothing(figures)


def test_a_burst_beyond_the_places_is_answered_or_shed() -> None:
    places = ("--max-concurrent-requests", "40", "--queue-size", "10")
    figures = figures_of(burst(150, 0.3, *places))
    assert figures["answered_200"] >= 50
    assert figures["answered_200"] + figures["answered_503"] == 150 and left_nothing(figures)


def test_readers_that_stop_are_bounded_and_cut() -> None:
    figures = figures_of(readers(10, 20, 1.0))
    assert figures["growth_mb"] < 32 and figures["served_after"] and left_nothing(figures)


def test_a_long_stream_is_not_held() -> None:
    figures = figures_of(stream(40))
    assert figures["missing"] == 0 and figures["growth_mb"] < 16
