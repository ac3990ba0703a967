"""What a job is, and the words a handler speaks: return a result, or raise Retry or GiveUp."""

from __future__ import annotations

import enum
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from libs.faults import Precondition

FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(minutes=10)


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


class JobEnded(Precondition):
    """The job has ended already."""

    reason = "JOB_ENDED"


class JobNotEnded(Precondition):
    """The job has not ended yet."""

    reason = "JOB_NOT_ENDED"


class Retry(Exception):
    """Trying again can help.

    Attributes:
        after: when; None leaves it to the back-off.
    """

    def __init__(self, message: str, *, after: timedelta | None = None) -> None:
        super().__init__(message)
        self.after = after


class GiveUp(Exception):
    """Trying again cannot help; the message is shown to the user."""


class LeaseLost(Exception):
    """Another runner holds the job now, or it was cancelled."""


@dataclass(frozen=True, slots=True)
class Job:
    """A row of jobs.jobs."""

    id: uuid.UUID
    kind: str
    target: str
    state: State
    arguments: Mapping[str, Any]
    creator: str
    percent: int
    message: str
    result: Any
    error: str
    attempts: int
    max_attempts: int
    fence: int
    cancel: bool
    traceparent: str
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


class Progress(Protocol):
    """Tells how far a job is; raises LeaseLost when it should stop."""

    async def __call__(self, percent: int, message: str) -> None:
        """Writes percent (0 to 100) and a sentence for people."""
        ...


Handler = Callable[[Job, Progress], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job.

    Attributes:
        name: such as `cluster-inventory`.
        targets: first part of the resource names that fit, such as `clusters`.
        depth: parts of the target's name, or 0 for any.
        permission: what the creator must hold on the target, checked again at every claim; empty for scheduled kinds.
        handler: does it.
        timeout: longest run of one attempt.
        max_attempts: tries before DEAD.
    """

    name: str
    targets: str
    depth: int
    permission: str
    handler: Handler
    timeout: timedelta = timedelta(minutes=5)
    max_attempts: int = 5

    def fits(self, target: str) -> bool:
        """Whether a target can be given to it."""
        parts = target.split("/")
        return parts[0] == self.targets and self.depth in (0, len(parts))


def backoff(attempt: int) -> timedelta:
    """When to try again after an attempt (from 1): doubled each time, with jitter on the upper half."""
    doublings = min(attempt - 1, 20)
    longest: timedelta = min(FIRST_RETRY * (1 << doublings), LONGEST_RETRY)
    return longest * (0.5 + random.random() / 2)  # noqa: S311 -- spreads load, keeps no secret
