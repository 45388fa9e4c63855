"""Every metric Hatch exports, in one registry."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library lacks the annotation

REGISTRY: Final = CollectorRegistry()

_FAST: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

WAKES: Final = Counter(
    "hatch_wakes", "Wakes, by what asked first and how they ended", ["reason", "outcome"], registry=REGISTRY
)
WAKE_SECONDS: Final = Histogram("hatch_wake_seconds", "From need to running", buckets=_FAST, registry=REGISTRY)
SUSPENDS: Final = Counter("hatch_suspends", "Suspends, by outcome", ["outcome"], registry=REGISTRY)
PAUSE_SECONDS: Final = Histogram(
    "hatch_pause_seconds", "How long a guest stood still in a suspend", buckets=_FAST, registry=REGISTRY
)
UPLOADS: Final = Counter("hatch_snapshot_uploads", "Snapshot uploads, by outcome", ["outcome"], registry=REGISTRY)
STORED_BYTES: Final = Counter("hatch_snapshot_stored_bytes", "Bytes written to the object store", registry=REGISTRY)
COLLECTED_OBJECTS: Final = Counter(
    "hatch_collected_objects", "Objects removed from the object store because nothing needs them", registry=REGISTRY
)
COLLECTED_BYTES: Final = Counter("hatch_collected_bytes", "Bytes of those objects", registry=REGISTRY)
UPLOADS_PENDING: Final = Gauge(
    "hatch_uploads_pending", "Snapshots that are on this host only, so far", registry=REGISTRY
)
UPLOAD_OLDEST_PENDING_SECONDS: Final = Gauge(
    "hatch_upload_oldest_pending_seconds", "How long the oldest of them has waited; 0 without any", registry=REGISTRY
)
VMS: Final = Gauge("hatch_vms", "VMs, by state", ["state"], registry=REGISTRY)
ROUTES: Final = Gauge("hatch_routes", "Routes", registry=REGISTRY)
