"""Under xdist, the end-to-end tests run in one worker: they share a daemon and a VM. So do those that need Ceph, which
takes ten seconds to start and 200 MB.

`--dist loadgroup` does that by the marker `xdist_group`, but xdist 3.8 writes the group into a part of the node that
pytest 9.2 no longer reads, and spreads the group over all workers without a word.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]


class _OneWorkerForEach(LoadGroupScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith("tests/e2e/"):
            return "e2e"
        if nodeid.startswith("tests/integration/test_s3_") or "[ceph" in nodeid:
            return "ceph"
        return str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadGroupScheduling | None:
    return _OneWorkerForEach(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(scope="session", autouse=True)
def _children_keep_bytecode(pytestconfig: pytest.Config) -> Iterator[None]:
    """Where Python is told to write no bytecode, every worker, pager and daemon would compile the whole house again."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.dont_write_bytecode and pytestconfig.cache is not None:
            patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
            patch.setenv("PYTHONPYCACHEPREFIX", str(pytestconfig.cache.mkdir("bytecode")))
        yield
