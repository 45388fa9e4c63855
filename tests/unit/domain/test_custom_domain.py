"""Which domains may be claimed, and what proves a claim."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Conflict, Invalid
from hatchvm.domain.custom_domain import (
    MAX_LENGTH,
    Challenge,
    challenge_of,
    check_domain,
    check_proof,
    claim,
)
from hatchvm.domain.route import Route, name_of, subdomain_of

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
BASES: Final = ("hatch.example", "localhost")
ROUTE: Final = Route(
    id="rt-1", vm_id="vm-1", subdomain="app", target_port=80, auto_wake=True, created_at=NOW, updated_at=NOW
)
LABELS: Final = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
TOPS: Final = st.from_regex(r"[a-z][a-z0-9]{0,10}", fullmatch=True)
DOMAINS: Final = st.tuples(st.lists(LABELS, min_size=1, max_size=6), TOPS).map(
    lambda parts: ".".join([*parts[0], parts[1]])
)
TEXTS: Final = st.text(max_size=40) | st.text("abcXYZ019.-_*:/\u212a\n ", max_size=40)


def own(domain: str) -> bool:
    return any(f".{domain}".endswith(f".{base}") for base in BASES)


@given(DOMAINS)
def test_every_host_name_with_a_dot_may_be_claimed_but_this_houses_own(domain: str) -> None:
    if own(domain):
        with pytest.raises(Invalid, match="set subdomain instead"):
            check_domain(domain, BASES)
    else:
        assert check_domain(domain, BASES) == domain


@given(TEXTS | DOMAINS)
def test_what_may_be_claimed_is_a_name_that_a_host_header_can_have_and_no_subdomain_of_this_house(text: str) -> None:
    try:
        check_domain(text, BASES)
    except Invalid as error:
        assert error.message.startswith("domain ")
        assert error.message.isprintable()
        return
    assert re.fullmatch(r"[a-z0-9.-]{3,253}", text)
    assert "." in text
    assert name_of(text) == name_of(text.upper() + ":443") == text
    assert subdomain_of(text, BASES) is None
    assert len(claimed(text).name) <= 253


@given(st.ip_addresses(v=4))
def test_no_address_may_be_claimed(address: ipaddress.IPv4Address) -> None:
    octets = str(address).split(".")
    forms = [str(address), ".".join(hex(int(octet)) for octet in octets), f"{octets[0]}.{int(address) & 0xFFFFFF}"]
    for form in (*forms, str(ipaddress.IPv6Address(int(address))), f"[::{address}]"):
        with pytest.raises(Invalid):
            check_domain(form, BASES)


@pytest.mark.parametrize(
    ("domain", "sentence"),
    [
        ("bücher.example", "like xn--bcher-kva.example"),
        ("\u212aelvin.example", "xn--"),
        ("*.example.com", "without a wildcard"),
        ("App.example.com", "a-z, 0-9 and inner '-'"),
        ("app.example.com.", "no final dot"),
        ("app_1.example.com", "inner '-'"),
        ("-app.example.com", "inner '-'"),
        ("app..example.com", "inner '-'"),
        ("app.example.com\n", "inner '-'"),
        ("app.example.com:80", "inner '-'"),
        ("https://app.example.com", "inner '-'"),
        ("", "like app.example.com"),
        ("x" * 64 + ".example.com", "1 to 63"),
        (".".join(["x" * 60] * 4) + ".e", f"at most {MAX_LENGTH} characters"),
        ("intranet", "must have a dot"),
        ("127.0.0.1", "not an IP address"),
        ("127.0.0.0x1", "not an IP address"),
        ("hatch.example", 'under "hatch.example"'),
        ("app.hatch.example", "set subdomain instead"),
        ("a.b.hatch.example", "set subdomain instead"),
        ("x.localhost", 'under "localhost"'),
    ],
)
def test_refusals_say_what_to_do(domain: str, sentence: str) -> None:
    with pytest.raises(Invalid, match=re.escape(sentence)):
        check_domain(domain, BASES)


@pytest.mark.parametrize(
    "domain", ["example", "app.example.com", "xn--bcher-kva.example", "1.2.3.example", "nohatch.example", "0x1.a.io"]
)
def test_names_that_only_look_refused(domain: str) -> None:
    assert check_domain(f"{domain}.org", BASES) == f"{domain}.org"


def test_the_longest_domain_has_a_record_that_the_dns_can_hold() -> None:
    longest = ".".join(["x" * 60] * 4)
    assert len(longest) < MAX_LENGTH
    longest = longest[: -(len(longest) - MAX_LENGTH)] if len(longest) > MAX_LENGTH else longest + "a"
    assert len(longest) == MAX_LENGTH
    check_domain(longest, BASES)
    assert len(claimed(longest).name) == 253


def claimed(domain: str) -> Challenge:
    challenge = challenge_of(claim(ROUTE, domain))
    assert challenge is not None
    return challenge


def test_every_claim_has_a_token_of_its_own() -> None:
    values = {claimed("app.example.com").value for _ in range(50)}
    assert len(values) == 50


def test_a_claim_begins_unverified_and_is_not_begun_anew_by_repeating_it() -> None:
    assert challenge_of(ROUTE) is None
    assert claim(ROUTE, None) is ROUTE
    first = claim(ROUTE, "app.example.com")
    assert (first.domain, first.verified_domain) == ("app.example.com", None)
    verified = replace(first, domain_verified_at=NOW)
    assert verified.verified_domain == "app.example.com"
    assert claim(verified, "app.example.com") is verified
    other = claim(verified, "other.example.com")
    assert (other.domain, other.verified_domain) == ("other.example.com", None)
    assert other.domain_token != first.domain_token
    assert claim(verified, None) == ROUTE


CHALLENGE: Final = Challenge("_hatchvm.app.example.com", "hatchvm-verify=00ff")


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        ([], "none"),
        (["v=spf1 -all"], '"v=spf1 -all"'),
        (["hatchvm-verify=00FF", "hatchvm-verify=00ff "], '"hatchvm-verify=00FF", "hatchvm-verify=00ff "'),
        (["a", "b", "c", "d"], '"a", "b", "c", and more'),
        (["x" * 4000], f'"{"x" * 80}…"'),
        (["two\nlines\x1b[31m"], '"two?lines?[31m"'),
    ],
)
def test_a_missing_proof_is_told_with_what_was_found(texts: list[str], found: str) -> None:
    with pytest.raises(Conflict) as refused:
        check_proof(CHALLENGE, texts)
    assert refused.value.message == (
        'domain not verified: expected a TXT record named "_hatchvm.app.example.com" with the value '
        f'"hatchvm-verify=00ff", found {found}'
    )


@given(st.lists(st.text(max_size=20), max_size=5), st.integers(0, 5))
def test_the_proof_may_stand_among_other_records(texts: list[str], place: int) -> None:
    check_proof(CHALLENGE, [*texts[:place], CHALLENGE.value, *texts[place:]])
