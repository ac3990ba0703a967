"""Figures of the engine; `deploy/alerts/jobs.yaml` watches them."""

from __future__ import annotations

from functools import cache

from prometheus_client import Counter, Gauge, Histogram

from libs.jobs.domain import State
from libs.jobs.queues import Queue

READY = Gauge("kubegems_jobs_ready", "Jobs that could start now.", ["queue"])
WAITING = Gauge("kubegems_jobs_waiting", "Jobs that wait for their time, key or kind.", ["queue"])
DISPATCHED = Gauge("kubegems_jobs_dispatched", "Jobs whose message is in the stream.", ["queue"])
RUNNING = Gauge("kubegems_jobs_running", "Jobs that run.", ["queue"])
DEAD = Gauge("kubegems_jobs_dead", "Jobs that failed too often and wait for a human.", ["queue"])
OLDEST = Gauge("kubegems_jobs_oldest_seconds", "Age of the oldest job that could start.", ["queue"])
PAUSED = Gauge("kubegems_jobs_queue_paused", "1 while the queue is paused.", ["queue"])
CLAIMS = Counter("kubegems_jobs_claims", "Claims.")
ATTEMPTS = Counter("kubegems_jobs_attempts", "Attempts that ended.", ["kind", "state"])
LAG = Histogram(
    "kubegems_jobs_claim_lag_seconds", "From when a job could start to its claim.", buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
)
TAKEN_BACK = Counter("kubegems_jobs_taken_back", "Jobs taken back from a worker that went away.")
REPAIRED = Counter("kubegems_jobs_repaired", "Differences between database and stream that were repaired.", ["what"])
LAST_CHECK = Gauge("kubegems_jobs_last_check_timestamp_seconds", "When database and stream were last compared.")
MISSED = Counter("kubegems_schedule_runs", "Firings of schedules.", ["outcome"])


@cache
def _attempts(kind: str, state: State) -> Counter:
    return ATTEMPTS.labels(kind, state.value)


def attempt(kind: str, state: State) -> None:
    """An attempt ended."""
    _attempts(kind, state).inc()


def show(queues: list[Queue]) -> None:
    """Sets the gauges of all queues."""
    for queue in queues:
        for gauge, value in (
            (READY, queue.ready), (WAITING, queue.waiting), (DISPATCHED, queue.dispatched), (RUNNING, queue.running),
            (DEAD, queue.dead), (OLDEST, queue.oldest_seconds), (PAUSED, queue.paused),
        ):  # fmt: skip
            gauge.labels(queue.name).set(float(value))
