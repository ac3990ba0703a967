"""What reconciling counts, in Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RUNS = Counter("kubegems_reconcile_runs", "Runs, by how they ended: done, again, fault, crash.", ["reconciler", "outcome"])
SECONDS = Histogram(
    "kubegems_reconcile_seconds", "How long a run takes.", ["reconciler"], buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
)
WAITING = Gauge("kubegems_reconcile_waiting", "Keys that wait for a run.", ["reconciler"])
LEADING = Gauge("kubegems_reconcile_leading", "1 while this process leads.", ["lease"])
