"""Host headers under several base domains, and letters that only look like ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.domain.addressing import user_guest_ip
from hatchvm.domain.route import RESERVED, check_subdomain, subdomain_of

NESTED = ("hatch.example", "eu.hatch.example")


@pytest.mark.parametrize("bases", [NESTED, NESTED[::-1]])
def test_a_base_domain_may_lie_under_another(bases: tuple[str, ...]) -> None:
    assert subdomain_of("app.eu.hatch.example", bases) == "app"
    assert subdomain_of("app.hatch.example", bases) == "app"
    assert subdomain_of("eu.hatch.example", bases) == "eu"
    assert subdomain_of("a.b.eu.hatch.example", bases) is None


@pytest.mark.parametrize(
    "host",
    [
        "\u212a.hatch.example",  # the Kelvin sign, a k in lower case
        "app.\u212aatch.example",
        "[::1]", "[::1]:9090", "::1", "[fe80::1%eth0]:80", "127.0.0.1:9090", "localhost",
        "app.hatch.example:80:80", "app.hatch.example: 80", "app.hatch.example:-1", "app.hatch.example ",
        " app.hatch.example", "app..hatch.example", "app.hatch.example..", "user@app.hatch.example",
        "app.hatch.example/", "app\0.hatch.example", "*.hatch.example", "app_1.hatch.example", ".", ":", "",
        "x" * 64 + ".hatch.example", "app.hatch.example.evil.example", "apphatch.example",
    ],
)  # fmt: skip
def test_hostile_hosts(host: str) -> None:
    assert subdomain_of(host, NESTED) is None


@given(
    host=st.text(st.sampled_from("aK\u212a-.:[]1@ \n")).map(lambda text: text + ".hatch.example")
    | st.text(st.sampled_from("ax.:1")),
    port=st.sampled_from(["", ":", ":80"]),
)
def test_what_is_found_is_what_was_asked_for(host: str, port: str) -> None:
    found = subdomain_of(host + port, NESTED)
    if found is not None:
        assert any(f"{found}.{base}" == host.lower() for base in NESTED)


def test_reserved_names_are_the_published_ones() -> None:
    published = """api, www, admin, app, dashboard, mail, smtp, ftp, ssh, ns1, ns2, status, docs, help, support,
        billing, login, auth, oauth, cdn, static, assets, media, hatch, console, panel, grafana, prometheus, traefik,
        minio, postgres, db, redis, internal"""
    assert {name.strip() for name in published.split(",")} == RESERVED
    with pytest.raises(Invalid, match=r'^subdomain "api" is reserved$'):
        check_subdomain("api")
    assert check_subdomain("api-1") == "api-1"


@pytest.mark.parametrize("wanted", ["0.1.2.3", "240.0.0.1", "255.255.255.254", "010.0.0.1", "10.0.0.1/24", "10.0.0.1 "])
def test_more_addresses_no_guest_can_have(wanted: str) -> None:
    with pytest.raises(Invalid, match="guest_ip"):
        user_guest_ip(wanted)
