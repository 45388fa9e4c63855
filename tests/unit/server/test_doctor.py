"""What the doctor says about certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatchvm.server import doctor
from hatchvm.server.config import load
from hatchvm.server.finding import Finding
from hatchvm.testing.edge.tls import make_pair


def said(folder: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> list[Finding]:
    for variable, ending in [("HATCH_TLS_CERT", "pem"), ("HATCH_TLS_KEY", "key")]:
        monkeypatch.setenv(variable, ",".join(str(folder / f"{name}.{ending}") for name in names))
    return list(doctor.certificates(load()))


def test_no_certificate_is_not_talked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(tmp_path, monkeypatch, []) == []


def test_every_certificate_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_pair(tmp_path, "good", ["a.example.com", "*.example.com"])
    make_pair(tmp_path, "bare", [])
    make_pair(tmp_path, "soon", ["b.example.com"], days=13.5)
    make_pair(tmp_path, "late", ["c.example.com"], days=-1)
    good, bare, soon, late, broken = said(tmp_path, monkeypatch, ["good", "bare", "soon", "late", "nowhere"])
    assert good.verdict == bare.verdict == "ok"
    assert "for a.example.com, *.example.com, until 20" in good.found
    assert "for no name" in bare.found
    assert (soon.verdict, late.verdict, broken.verdict) == ("warn", "warn", "fail")
    assert "expires on" in soon.found
    assert "expired on" in late.found
    assert "nowhere.pem cannot be read" in broken.found
