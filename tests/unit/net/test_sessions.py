"""Seeing an SSH session that bypasses Hatch."""

from __future__ import annotations

from pathlib import Path

from hatchvm.net.sessions import established

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3E80 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 1
   1: 0100007F:3E80 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2
   2: 0100007F:D431 0100007F:3E80 01 00000000:00000000 00:00000000 00000000     0        0 3
"""
CONNTRACK = """ipv4 2 tcp 6 431999 ESTABLISHED src=1.2.3.4 sport=999 dport=16000 src=9.9.9.9 sport=22 dport=999
ipv4 2 tcp 6 100 TIME_WAIT src=1.2.3.4 sport=998 dport=16000 src=9.9.9.9 sport=22 dport=998
ipv4 2 tcp 6 431999 ESTABLISHED src=1.2.3.4 sport=997 dport=160001 src=9.9.9.9 sport=22 dport=16000
"""


def test_only_established_connections_to_exactly_that_port_count(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    (tmp_path / "nf_conntrack").write_text(CONNTRACK)
    assert established(16000, tmp_path) == 2
    assert established(1600, tmp_path) == 0
    assert established(22, tmp_path) == 0


def test_what_the_kernel_does_not_offer_is_none(tmp_path: Path) -> None:
    assert established(16000, tmp_path) == 0
