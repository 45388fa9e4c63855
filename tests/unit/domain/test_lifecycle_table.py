"""The table of states is sound: nothing is unreachable, nothing is a trap."""

from __future__ import annotations

import pytest

from hatchvm.base.errors import Conflict
from hatchvm.domain.lifecycle import PUBLIC, TARGET, TRANSITIONS, Event, Found, State, advance, recovered

ALL = list(State)


def reach(start: State, *, without: frozenset[Event] = frozenset()) -> set[State]:
    found, ahead = {start}, [start]
    while ahead:
        state = ahead.pop()
        for (before, event), after in TRANSITIONS.items():
            if before is state and event not in without and after not in found:
                found.add(after)
                ahead.append(after)
    return found


def test_every_state_can_be_reached_from_the_first() -> None:
    assert reach(State.STARTING) == set(State)


@pytest.mark.parametrize("state", ALL)
def test_every_state_can_be_deleted(state: State) -> None:
    assert advance(state, Event.DELETE) is State.DELETING


@pytest.mark.parametrize("state", TARGET)
def test_a_transitional_state_reaches_its_target_in_one_move_and_can_fail(state: State) -> None:
    after = {after for (before, event), after in TRANSITIONS.items() if before is state and event is not Event.DELETE}
    assert TARGET[state] in after
    assert State.ERROR in after
    assert TARGET[state] not in TARGET


@pytest.mark.parametrize("state", [state for state in State if state is not State.DELETING])
def test_every_vm_can_run_again_without_being_deleted(state: State) -> None:
    assert State.RUNNING in reach(state, without=frozenset({Event.DELETE}))


@pytest.mark.parametrize("state", ALL)
def test_every_state_has_a_public_name_that_is_a_state(state: State) -> None:
    assert PUBLIC[state] in {"starting", "running", "snapshotted", "stopping", "stopped", "error"}


@pytest.mark.parametrize("state", ALL)
@pytest.mark.parametrize("event", list(Event))
def test_what_is_not_in_the_table_is_a_conflict_that_names_the_public_state(state: State, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert advance(state, event) is TRANSITIONS[state, event]
        return
    with pytest.raises(Conflict, match=f'vm is in state "{PUBLIC[state]}"; it cannot '):
        advance(state, event)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("found", list(Found))
@pytest.mark.parametrize("row", ALL)
def test_a_restart_leaves_no_vm_between_states_and_gives_a_reason_for_a_loss(
    row: State, found: Found, stored: bool
) -> None:
    state, reason = recovered(row, found, stored=stored)
    assert state not in TARGET
    if row in (State.DELETING, State.ERROR):
        assert state is row
    elif row in (State.STOPPING, State.STOPPED):
        assert (state, reason) == (State.STOPPED, "")
    elif found is Found.RUNNING:
        assert (state, reason) == (State.RUNNING, "")
    elif state in (State.STOPPED, State.ERROR):
        assert reason
    if state is State.SNAPSHOTTED:
        assert found is Found.SAVED or stored


@pytest.mark.parametrize("row", [State.SUSPENDING, State.SNAPSHOTTED, State.RESTORING, State.RUNNING])
def test_saved_memory_is_kept(row: State) -> None:
    assert recovered(row, Found.SAVED, stored=False) == (State.SNAPSHOTTED, "")


@pytest.mark.parametrize("row", [State.RUNNING, State.SUSPENDING])
def test_an_older_stored_snapshot_does_not_stand_in_for_lost_memory(row: State) -> None:
    state, reason = recovered(row, Found.DISK, stored=True)
    assert state is State.STOPPED
    assert "start it to boot its disk" in reason
