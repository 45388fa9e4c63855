"""SSH sessions over both families of addresses, and ports that look alike."""

from __future__ import annotations

from pathlib import Path

from hatchvm.net.sessions import established

LOOPBACK_6 = "00000000000000000000000001000000"


def test_sessions_of_both_families_count(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text("sl\n 0: 0100007F:0898 0100007F:D431 01 0:0\n")
    (tmp_path / "tcp6").write_text(f"sl\n 0: {LOOPBACK_6}:0898 {LOOPBACK_6}:D431 01 0:0\n")
    (tmp_path / "nf_conntrack").write_text(
        "ipv6 10 tcp 6 9 ESTABLISHED src=fe80::1 sport=9 dport=2200 src=fe80::2 sport=22 dport=9\n"
    )
    assert established(2200, tmp_path) == 3


def test_a_port_is_not_its_beginning_and_not_its_end(tmp_path: Path) -> None:
    (tmp_path / "nf_conntrack").write_text("ipv4 2 tcp 6 9 ESTABLISHED sport=2200 dport=22000 sport=22 dport=9\n")
    (tmp_path / "tcp").write_text("sl\n 0: 0100007F:55F0 0100007F:0898 01 0:0\n")
    assert established(22000, tmp_path) == 2
    assert not any(established(port, tmp_path) for port in (2200, 220, 22, 2000, 9, 0x5F0, 0x55F))


def test_lines_that_are_cut_off_are_no_sessions(tmp_path: Path) -> None:
    (tmp_path / "nf_conntrack").write_text("\nipv4 2 tcp 6 9 ESTABLISHED\n")
    (tmp_path / "tcp").write_text("\n 0: 0100007F:0898\n")
    assert established(2200, tmp_path) == 0
