"""A proxy worker. Started by the daemon, never by hand."""

from __future__ import annotations

from hatchvm.edge.http.workers.worker import run

if __name__ == "__main__":
    run()
