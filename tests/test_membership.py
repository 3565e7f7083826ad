"""Several sources at once: who owns an engine, what happens when it goes, an operator's word."""

from __future__ import annotations

import pytest

from lodestar_fast.errors import ConfigError
from lodestar_fast.proxy.discovery.membership import ADMIN, STATIC, Membership
from lodestar_fast.proxy.instance import Instance
from tests.fake_fleet import FleetFixture

A, B, C = (f"http://{name}:8000" for name in "abc")


class Members(FleetFixture):
    def __init__(self, places: int = 8, linger: float = 30.0) -> None:
        super().__init__(places)
        self.members = Membership(self.fleet, linger)
        self.busy: set[str] = set()
        self.router.instance = lambda slot: {  # type: ignore[method-assign]
            "inflight": int(self.context.instances[slot].url in self.busy)
        }

    def of(self, url: str) -> Instance:
        (found,) = [i for i in self.fleet.all if i.url == url]
        return found

    def taking(self) -> set[str]:
        """The engines that may get requests."""
        return {i.url for i in self.fleet.all if not i.draining}

    def there(self) -> set[str]:
        return {i.url for i in self.fleet.all}


def test_the_fleet_is_the_union_of_what_sources_list() -> None:
    at = Members()
    at.members.claim(STATIC, [A])
    at.members.claim("file", [A, B])
    assert at.taking() == {A, B} and at.members.owners(A) == [STATIC, "file"]
    at.members.claim("file", [])
    assert at.taking() == {A}, "another source lists it"
    at.members.claim(STATIC, [])
    assert at.taking() == set() and at.there() == {A, B}
    assert at.members.changes == {"added": 2, "gone": 2, "returned": 0, "refused": 0}


def test_what_goes_is_forgotten_when_idle_and_not_before() -> None:
    at = Members()
    at.members.claim("file", [A, B])
    at.busy = {A}
    at.members.claim("file", [])
    at.clock.advance_to(29)
    at.members.sweep()
    assert at.there() == {A, B}
    at.clock.advance_to(31)
    at.members.sweep()
    assert at.there() == {A}, "its request goes on"
    pool = at.of(A).pool
    at.clock.advance_to(5000)
    at.members.sweep()
    assert at.there() == {A} and not pool.closed
    at.busy.clear()
    at.members.sweep()
    assert at.there() == set() and pool.closed


def test_what_comes_back_takes_requests_at_once_and_is_the_same() -> None:
    at = Members()
    at.members.claim("file", [A])
    before = at.of(A)
    before.note_check("")
    at.members.claim("file", [])
    assert at.routable == []
    at.members.claim("file", [A])
    assert at.of(A) is before and at.routable == [before.slot]
    at.clock.advance_to(100)
    at.members.sweep()
    assert at.there() == {A} and at.members.changes["returned"] == 1


def test_an_operators_drain_is_not_undone_by_a_source() -> None:
    at = Members()
    at.members.claim("file", [A])
    at.fleet.drain(at.of(A).id)
    at.members.claim("file", [A, B])
    assert at.taking() == {B}
    at.members.claim("file", [B])
    at.members.claim("file", [A, B])
    assert at.taking() == {B}, "nor by its going and coming"
    at.members.add(A)
    assert at.taking() == {A, B} and at.members.owners(A) == [ADMIN, "file"]


def test_an_operator_removes_what_no_source_would_bring_back() -> None:
    at = Members()
    at.members.claim(STATIC, [A])
    at.members.claim("file", [B])
    at.members.add(C)
    assert at.members.remove(at.of(B)) == ["file"] and at.there() == {A, B, C}
    for url in (A, C):
        assert at.members.remove(at.of(url)) == []
    assert at.there() == {B} and at.members.counts() == {STATIC: 0, ADMIN: 0, "file": 1}


def test_a_source_that_is_switched_off_lists_nothing() -> None:
    at = Members()
    at.members.claim("file", [A])
    at.members.claim("kubernetes", [A, B])
    at.members.withdraw("kubernetes")
    assert at.taking() == {A} and at.members.counts() == {STATIC: 0, ADMIN: 0, "file": 1}


def test_without_room_the_longest_gone_makes_some() -> None:
    at = Members(places=2)
    at.members.claim("file", [A, B])
    at.members.claim("file", [B])
    assert at.members.claim("file", [B, C]) == []
    assert at.there() == {B, C}


def test_too_many_are_refused_and_tried_again() -> None:
    at = Members(places=1, linger=1.0)
    at.members.claim("file", [A])
    (complaint,) = at.members.claim("kubernetes", [B])
    assert "max_instances" in complaint and at.there() == {A}
    at.members.sweep()
    assert at.members.changes["refused"] == 1, "counted once"
    with pytest.raises(ConfigError):
        at.members.add(C)
    assert at.members.counts()[ADMIN] == 0
    at.members.claim("file", [])
    assert at.there() == {B}, "its room is taken at once"


def test_how_many_there_would_be() -> None:
    at = Members()
    at.members.claim(STATIC, [A])
    at.members.claim("file", [B])
    assert at.members.would_be(STATIC, [A, B, C]) == 3
    assert at.members.would_be(STATIC, []) == 1
