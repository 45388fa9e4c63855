"""The shape of the states' table: what may be asked for, what only a sequence reports, what a restart concludes."""

from __future__ import annotations

import itertools
from typing import Final

import pytest

from hatchvm.base.errors import Conflict
from hatchvm.domain.lifecycle import PUBLIC, TARGET, TRANSITIONS, Event, Found, State, advance, recovered

#: What somebody asks for, and what ends the sequence that follows.
ASKED: Final = {Event.SUSPEND, Event.RESTORE, Event.STOP, Event.START}
ENDED: Final = {Event.BOOTED, Event.SUSPENDED, Event.RESUMED, Event.RESTORED, Event.ABORTED, Event.HALTED}
STABLE: Final = [state for state in State if state not in TARGET and state is not State.DELETING]
CASES: Final = list(itertools.product(State, Found, (False, True)))


def allowed(state: State) -> set[Event]:
    return {event for before, event in TRANSITIONS if before is state} - {Event.DELETE}


def test_every_event_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(Event) == {*ASKED, *ENDED, Event.LOST, Event.FAIL, Event.DELETE}


@pytest.mark.parametrize("state", STABLE)
def test_a_stable_state_is_left_when_asked_or_when_the_process_ends(state: State) -> None:
    assert allowed(state) <= ASKED | {Event.LOST, Event.FAIL}
    assert all(advance(state, event) in TARGET for event in allowed(state) & ASKED)
    assert allowed(state) & ASKED


@pytest.mark.parametrize("state", TARGET)
def test_a_state_that_is_being_left_takes_no_requests(state: State) -> None:
    assert allowed(state) <= ENDED | {Event.LOST, Event.FAIL}
    assert all(advance(state, event) not in TARGET for event in allowed(state))


def test_what_is_being_deleted_stays_so() -> None:
    assert not allowed(State.DELETING)


def test_only_a_failure_leads_to_error() -> None:
    assert {event for (_, event), after in TRANSITIONS.items() if after is State.ERROR} == {Event.FAIL}
    assert {after for (_, event), after in TRANSITIONS.items() if event is Event.FAIL} == {State.ERROR}


def test_users_see_six_states_and_none_of_the_others_in_a_refusal() -> None:
    assert set(PUBLIC) == set(State)
    assert set(PUBLIC.values()) == {"starting", "running", "stopping", "stopped", "snapshotted", "error"}
    for state, event in itertools.product(State, ASKED):
        if (state, event) not in TRANSITIONS:
            with pytest.raises(Conflict) as refusal:
                advance(state, event)
            assert not {"suspending", "restoring", "deleting"} & set(str(refusal.value).replace('"', " ").split())


def test_the_refusal_of_a_request_is_a_sentence() -> None:
    with pytest.raises(Conflict) as refusal:
        advance(State.STOPPED, Event.SUSPEND)
    assert str(refusal.value) == 'vm is in state "stopped"; it cannot be snapshotted now'


@pytest.mark.parametrize(("row", "found", "stored"), CASES)
def test_nothing_runs_after_a_restart_without_a_process(row: State, found: Found, stored: bool) -> None:
    state, _ = recovered(row, found, stored=stored)
    assert state is not State.RUNNING or found is Found.RUNNING


@pytest.mark.parametrize(("row", "found", "stored"), CASES)
def test_a_sleeper_whose_memory_is_somewhere_survives_a_restart(row: State, found: Found, stored: bool) -> None:
    if row in (State.SNAPSHOTTED, State.RESTORING) and found is not Found.RUNNING:
        kept = stored or found is Found.SAVED
        state, reason = recovered(row, found, stored=stored)
        assert (state, bool(reason)) == (State.SNAPSHOTTED if kept else State.STOPPED, not kept)


@pytest.mark.parametrize(("row", "found", "stored"), CASES)
def test_a_reason_is_given_exactly_when_a_vm_is_not_where_it_was_heading(
    row: State, found: Found, stored: bool
) -> None:
    state, reason = recovered(row, found, stored=stored)
    wanted = {row, State.RUNNING, State.SNAPSHOTTED, *([TARGET[row]] if row in TARGET else [])}
    assert bool(reason) == (state not in wanted)
