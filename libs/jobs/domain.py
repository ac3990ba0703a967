"""What a job is, how it is ordered, and the words a handler speaks: return a result, or raise Retry or GiveUp."""

from __future__ import annotations

import enum
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import Message

from libs.faults import Precondition

LONGEST_WAIT = timedelta(hours=1)  # what a handler may ask for; a longer wait is a schedule
MOST_PAYLOAD = 64 * 1024  # bytes of JSON


class State(enum.StrEnum):
    """States of kubegems.jobs.v1.Job."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    DEAD = "DEAD"

    @property
    def ended(self) -> bool:
        """Whether nothing happens any more unless a human asks."""
        return self not in (State.QUEUED, State.RUNNING)


class Reason(enum.StrEnum):
    """Why a job ended as it did, or waits again."""

    NONE = ""
    EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    WORKER_LOST = "WORKER_LOST"
    TIMEOUT = "TIMEOUT"
    NOT_RETRYABLE = "NOT_RETRYABLE"
    FORBIDDEN = "FORBIDDEN"
    BAD_PAYLOAD = "BAD_PAYLOAD"
    CANCELLED = "CANCELLED"


class JobEnded(Precondition):
    """The job has ended already."""

    reason = "JOB_ENDED"


class JobNotEnded(Precondition):
    """The job has not ended yet."""

    reason = "JOB_NOT_ENDED"


class Retry(Exception):
    """Trying again can help.

    Attributes:
        after: when, at most an hour; None leaves it to the back-off.
    """

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = None if after is None else min(after, LONGEST_WAIT)


class GiveUp(Exception):
    """Trying again cannot help; the message is shown to the user."""


class LeaseLost(Exception):
    """Another runner holds the job now."""


class Job(NamedTuple):
    """A row of jobs.jobs."""

    id: uuid.UUID
    kind: str
    target: str
    queue: str
    state: State
    arguments: Mapping[str, Any]
    creator: str
    owner: str
    percent: int
    message: str
    step: str
    log: Sequence[str]
    result: Any
    error: str
    reason: str
    attempts: int
    max_attempts: int
    priority: int
    waits: str
    concurrency_key: str | None
    pending_key: str | None
    fence: int
    cancel: bool
    traceparent: str
    replay_of: uuid.UUID | None
    run_time: datetime
    create_time: datetime
    start_time: datetime | None
    end_time: datetime | None

    @property
    def name(self) -> str:
        """Resource name."""
        return f"jobs/{self.id}"

    @property
    def trace_id(self) -> str:
        """Trace that the job belongs to; empty for none."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) > 1 else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job to enqueue; any service can place one without knowing the worker that does it.

    Attributes:
        kind: its name.
        target: resource name that decides who may see it.
        creator: `users/…` or `schedules/…`.
        owner: whose rights are checked at every claim; None: the creator, if it is no schedule.
        payload: what the kind needs to know; no secrets.
        queue: where it waits.
        priority: 0 to 9; higher goes first among a tenant's jobs.
        delay: not to start before; None: now.
        max_attempts: tries before DEAD.
        concurrency_key: no two jobs with one key run at the same time, such as `release/<cluster>/<namespace>/<name>`.
        pending_key: while a job with this key waits or runs, no other is made: the same one is returned.
        idempotency_key: a job with this key is made once for as long as it is kept.
        replay_of: the job that it repeats.
    """

    kind: str
    target: str
    creator: str
    owner: str | None = None
    payload: Message | Mapping[str, Any] | None = None
    queue: str = "default"
    priority: int = 0
    run_time: datetime | None = None
    max_attempts: int = 5
    concurrency_key: str | None = None
    pending_key: str | None = None
    idempotency_key: str | None = None
    replay_of: uuid.UUID | None = None

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The payload as it is stored."""
        if isinstance(self.payload, Message):
            return to_json(self.payload)
        return self.payload or {}


def to_json(message: Message) -> dict[str, Any]:
    """A payload or result as it is stored: JSON."""
    if not message.ByteSize():
        return {}
    found: dict[str, Any] = json_format.MessageToDict(message)
    return found
