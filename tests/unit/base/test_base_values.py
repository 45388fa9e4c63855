"""The ground floor: ids, durations, errors, files, time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base import errors, ids, units
from hatchvm.base.clock import SystemClock, rfc3339
from hatchvm.base.errors import EXIT_CODE, HTTP_STATUS, HatchError, Kind
from hatchvm.base.files import allocated_bytes, write_atomic


@pytest.mark.parametrize("prefix", [ids.VM, ids.ROUTE, ids.SNAPSHOT, ids.IMAGE, ids.TEMPLATE, ids.KEY])
def test_ids_tell_their_kind(prefix: str) -> None:
    one = ids.new(prefix)
    assert ids.is_id(one, prefix)
    assert not ids.is_id(one, "other")
    assert ids.new(prefix) != one


@pytest.mark.parametrize(
    "text", ["", "vm-", "vm-0123456789a", "vm-0123456789abc", "vm-0123456789aB", "vm-0123456789ab\n"]
)
def test_what_is_no_id(text: str) -> None:
    assert not ids.is_id(text, ids.VM)


@given(st.text())
def test_an_id_is_always_safe_in_a_path(text: str) -> None:
    assert not ids.is_id(text, ids.VM) or not set(text) & set("/.\0")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("250ms", 0.25), ("1.5h", 5400), (".5s", 0.5), ("1us", 1e-6)],
)
def test_durations_as_go_writes_them(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1 s", "1d", "1h-1m", "1e3s", "1s\n", "9" * 65, "999999999h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration"):
        units.parse_duration(text)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_duration_survives_being_written_and_read(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds, abs=5e-4)


@given(st.text(max_size=80))
def test_any_text_is_a_duration_or_a_sentence(text: str) -> None:
    try:
        assert units.parse_duration(text) >= 0
    except ValueError as error:
        assert "duration" in str(error)


def test_sizes_for_people() -> None:
    assert [units.format_bytes(n) for n in (12, 59392, 3 << 29, 1 << 50)] == [
        "12 B",
        "58.0 KiB",
        "1.5 GiB",
        "1024.0 TiB",
    ]


@given(st.integers(0, 1 << 50))
def test_sizes_that_are_written_can_be_read(count: int) -> None:
    assert units.parse_bytes(units.format_bytes(count)) == pytest.approx(count, rel=0.06)
    assert units.parse_bytes(str(count)) == count


def test_sizes_as_people_write_them() -> None:
    assert [units.parse_bytes(text) for text in ("0", "12B", "58KiB", " 1.5 GiB ", "1TiB")] == [
        *(0, 12, 58 << 10, 3 << 29, 1 << 40)
    ]
    for text in ("", "MiB", "1MB", "1m", "-1", "1e6", "1 000", "\u0661", "inf", "1.MiB", "1" * 17):
        with pytest.raises(ValueError, match="is not a size"):
            units.parse_bytes(text)


def test_every_kind_has_a_status_and_an_exit_code_and_only_a_bug_is_a_500() -> None:
    assert set(HTTP_STATUS) == set(EXIT_CODE) == set(Kind)
    assert [kind for kind, status in HTTP_STATUS.items() if status == 500] == [Kind.INTERNAL]
    assert 0 not in EXIT_CODE.values()


def test_every_kind_has_an_error() -> None:
    kinds = {it.kind for it in vars(errors).values() if isinstance(it, type) and issubclass(it, HatchError)}
    assert kinds == set(Kind)


def test_an_errors_detail_is_not_in_its_sentence() -> None:
    error = errors.Unavailable("not now", detail="/secret/path", retry_after_s=2)
    assert (str(error), error.detail, error.retry_after_s) == ("not now", "/secret/path", 2)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"one", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600

    def fail(self: Path, target: Path) -> Path:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, b"two")
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (b"one", [path])


def test_what_a_sparse_file_takes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    assert allocated_bytes(path) == 0
    with path.open("wb") as file:
        file.truncate(1 << 30)
    assert allocated_bytes(path) < 1 << 20


def test_times_are_written_in_utc_without_fractions() -> None:
    moment = datetime(2026, 3, 6, 15, 30, 0, 999999, tzinfo=timezone(timedelta(hours=1)))
    assert rfc3339(moment) == "2026-03-06T14:30:00Z"
    assert SystemClock().now().tzinfo is UTC
