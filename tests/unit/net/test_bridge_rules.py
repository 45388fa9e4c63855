"""The filter as data: what it says for which settings. What it does to packets is in the integration tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.net.bridge import rules
from hatchvm.net.bridge.settings import Allow, Bridge, parse_allow
from hatchvm.ports.network import Seat

SEAT = Seat(vm_id="vm-1", guest_ip="172.16.0.2", guest_mac="52:54:00:00:00:02", tap_name="vm-1")
PAIR = {"concat": ["52:54:00:00:00:02", "172.16.0.2"]}


def bridge(allow: str = "", name: str = "br-7") -> Bridge:
    return Bridge(name=name, cidr=IPv4Interface("172.16.0.1/24"), allow=parse_allow(allow))


def added(commands: list[dict[str, Any]], what: str) -> Iterator[dict[str, Any]]:
    return (command["add"][what] for command in commands if what in command.get("add", {}))


def chain(commands: list[dict[str, Any]], name: str, family: str = "inet") -> list[str]:
    """Its rules as text, to search in."""
    return [
        json.dumps(rule["expr"])
        for rule in added(commands, "rule")
        if rule["chain"] == name and rule["family"] == family
    ]


def test_both_tables_are_replaced_whole() -> None:
    verbs = [(next(iter(command)), command) for command in rules.ruleset(bridge(), [])[1:5]]
    assert [verb for verb, _ in verbs] == ["add", "delete", "add", "delete"]
    assert {command[verb]["table"]["family"] for verb, command in verbs} == {"inet", "arp"}


def test_everything_is_named_after_the_bridge() -> None:
    for kind in ("set", "chain", "rule"):
        assert {each["table"] for each in added(rules.ruleset(bridge(), [SEAT]), kind)} == {"hatch_br_7"}


def test_seats_are_in_the_sets_of_both_tables() -> None:
    assert [each["elem"] for each in added(rules.ruleset(bridge(), [SEAT]), "set")] == [[PAIR], [PAIR]]
    assert all("elem" not in each for each in added(rules.ruleset(bridge(), []), "set"))  # nft refuses empty lists


def test_the_last_word_to_guests_is_no_on_the_host_and_yes_beyond() -> None:
    commands = rules.ruleset(bridge(), [])
    assert "reject" in chain(commands, "input")[-1]
    assert chain(commands, "guest")[-1] == '[{"accept": null}]'
    assert "drop" in chain(commands, "forward")[-1]


def test_who_lies_about_its_address_is_dropped_before_anything_is_accepted() -> None:
    for name in ("guest", "input"):
        texts = chain(rules.ruleset(bridge("0.0.0.0/0"), []), name)
        lies = next(index for index, text in enumerate(texts) if "@seats" in text and "drop" in text)
        accepted = [text for text in texts[:lies] if "accept" in text and '"iifname"' not in text]
        assert all('"0.0.0.0"' in text and "67" in text for text in accepted)  # who has no address yet, asks for one


def test_rules_of_the_operator_come_before_what_is_refused_for_the_host_and_beyond() -> None:
    commands = rules.ruleset(bridge("192.0.2.0/24:443"), [])
    for name in ("guest", "input"):
        texts = chain(commands, name)
        mine = next(index for index, text in enumerate(texts) if "192.0.2.0" in text)
        assert mine < min(index for index, text in enumerate(texts) if "reject" in text)
        assert '"tcp", "udp"' in texts[mine] and "443" in texts[mine]


def test_a_seat_is_added_before_it_is_deleted_so_that_both_can_be_repeated() -> None:
    assert [next(iter(command)) for command in rules.seat(bridge(), SEAT, "add")] == ["add", "add"]
    assert [next(iter(command)) for command in rules.seat(bridge(), SEAT, "delete")] == ["add", "delete"] * 2


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network:
    return IPv4Network((draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 32))), strict=False)


@given(st.lists(st.builds(Allow, networks(), st.none() | st.integers(1, 65535))))
def test_rules_are_read_as_they_are_written(wanted: list[Allow]) -> None:
    text = ", ".join(f"{rule.network}" + (f":{rule.port}" if rule.port else "") for rule in wanted)
    assert parse_allow(text) == tuple(wanted)


@pytest.mark.parametrize(
    "text", ["a", "10.0.0.1/8", "::1", "10.0.0.0/8:", "10.0.0.0/8:http", "1.2.3.4:0", "1.2.3.4:65536"]
)
def test_what_is_no_rule_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid, match=r"write it like 192\.0\.2\.0/24|names no port"):
        parse_allow(text)
