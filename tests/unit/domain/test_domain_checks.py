"""When the proof of a verified domain is asked for again, and when the domain is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from hypothesis import example, given
from hypothesis import strategies as st

from hatchvm.domain.custom_domain import (
    LOOKS,
    LOST_AFTER,
    LOST_MISSES,
    challenge_of,
    checked,
    claim,
    due,
    verified,
)
from hatchvm.domain.route import Route

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
DAY: Final = timedelta(days=1)
BARE: Final = Route(
    id="rt-1", vm_id="vm-1", subdomain="app", target_port=80, auto_wake=True, created_at=NOW, updated_at=NOW
)
CLAIMED: Final = claim(BARE, "app.example.com")
PROVEN: Final = verified(CLAIMED, NOW)
_CHALLENGE = challenge_of(PROVEN)
assert _CHALLENGE is not None
PROOF: Final = ["v=spf1 -all", _CHALLENGE.value]
#: What the DNS may say: the proof, something else, nothing, or (None) no word.
ANSWERS: Final = st.sampled_from([PROOF, ["hatchvm-verify=00ff"], [], None])
HOURS: Final = st.integers(1, 60).map(lambda hours: timedelta(hours=hours))


@given(st.lists(st.tuples(HOURS, ANSWERS), max_size=30))
def test_a_domain_is_lost_after_misses_in_a_row_over_days_and_never_earlier(
    story: list[tuple[timedelta, Sequence[str] | None]],
) -> None:
    """Against the plain history of answers since the last good one."""
    route, now, missed = PROVEN, NOW, list[datetime]()
    for pause, texts in story:
        now += pause
        if texts is not None:
            missed = [] if texts is PROOF else [*missed, now]
        route = checked(route, texts, now)
        assert (route.domain_checked_at, route.domain_misses) == (now, len(missed))
        assert route.domain_missing_since == (missed[0] if missed else None)
        lost = len(missed) >= LOST_MISSES and missed[-1] - missed[0] >= LOST_AFTER
        assert (route.verified_domain is None) == lost
        assert (route.domain, route.domain_token, route.updated_at) == (PROVEN.domain, PROVEN.domain_token, NOW)
        if lost:
            assert checked(route, PROOF, now + DAY) is route, "only its user proves it anew"
            assert verified(route, now) == replace(PROVEN, domain_verified_at=now)
            return


def test_what_is_not_verified_is_not_checked() -> None:
    for route in (BARE, CLAIMED):
        assert checked(route, [], NOW) is route
        assert due([route], NOW + 9 * DAY, DAY) == []


def test_another_claim_begins_without_misses() -> None:
    missing = checked(PROVEN, [], NOW)
    assert claim(missing, "app.example.com") is missing
    assert claim(missing, "other.example.com").domain_misses == 0
    assert claim(missing, None) == BARE


@given(
    st.lists(st.integers(-100, 100).map(lambda hours: timedelta(hours=hours)), max_size=60),
    st.integers(1, 100).map(lambda hours: timedelta(hours=hours)),
    st.data(),
)
@example([timedelta(days=-9)] * 240, DAY, None)
def test_each_is_asked_about_once_in_a_pause_and_not_much_later(
    asked: list[timedelta], pause: timedelta, data: st.DataObject | None
) -> None:
    """Whatever was due at the start, e.g. because nobody looked for long."""
    routes = {f"rt-{n}": replace(PROVEN, id=f"rt-{n}", domain_checked_at=NOW + at) for n, at in enumerate(asked)}
    last = {row.id: max(NOW, (row.domain_checked_at or NOW) + pause) for row in routes.values()}  # when it is due
    look = pause / LOOKS
    for number in range(3 * LOOKS):
        now = NOW + number * look
        found = due(routes.values(), now, pause)
        assert len(found) <= -(-2 * len(routes) // LOOKS)
        for route in found:
            assert last[route.id] <= now, "too early"
            assert now - last[route.id] <= pause / 2 + look, "too late"
            last[route.id] = now + pause
            texts = PROOF if data is None else data.draw(st.sampled_from([PROOF, None]))
            routes[route.id] = checked(route, texts, now)
    assert all(now - moment <= pause / 2 + look for moment in last.values())
