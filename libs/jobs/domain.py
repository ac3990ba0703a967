"""What a job is, what a kind promises, and the words a handler speaks: return a result, or raise Retry or GiveUp."""

from __future__ import annotations

import enum
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf import empty_pb2, json_format
from google.protobuf.message import Message

from libs.faults import Invalid, Precondition, Violation

if TYPE_CHECKING:
    from libs.jobs.context import Context

FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(minutes=10)
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


def backoff(attempt: int, *, first: timedelta = FIRST_RETRY, longest: timedelta = LONGEST_RETRY) -> timedelta:
    """When to try again after an attempt (from 1): doubled each time, with jitter on the upper half."""
    doublings = min(attempt - 1, 20)
    most: timedelta = min(first * (1 << doublings), longest)
    return most * (0.5 + random.random() / 2)  # noqa: S311 -- spreads load, keeps no secret


Handler = Callable[["Context", Any], Awaitable[Message | None]]


@dataclass(frozen=True, slots=True)
class Step:
    """One part of a job: its name, unique in the kind, and what does it. A step that succeeded is never run again."""

    name: str
    handler: Handler


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job.

    Attributes:
        name: such as `cluster-inventory`.
        targets: first part of the resource names that fit, such as `clusters`.
        depth: parts of the target's name, or 0 for any.
        permission: what the owner must hold on the target, checked again at every claim; empty for the platform's own work.
        handler: does it; None when it has steps.
        steps: parts that are done in order, each with its own state; a retry goes on at the first that has not succeeded.
        payload: type of the payload.
        timeout: longest run of one attempt.
        max_attempts: tries before DEAD.
        retry_after: when to try again after an attempt (from 1), unless the handler says so itself.
        queue: where its jobs wait.
        cancel_grace: how long a handler may clean up after a cancel or the end of its time.
        keep: how long an ended job is kept; one that failed is kept at least 30 days.
        keep_result: how long the result is kept.
        concurrency_key: of the target and payload; empty for none.
        unique: one job per target and payload at a time.
    """

    name: str
    targets: str
    depth: int
    permission: str
    handler: Handler | None = None
    steps: tuple[Step, ...] = ()
    payload: type[Message] = empty_pb2.Empty
    timeout: timedelta = timedelta(minutes=5)
    max_attempts: int = 5
    retry_after: Callable[[int], timedelta] = backoff
    queue: str = "default"
    cancel_grace: timedelta = timedelta(seconds=10)
    keep: timedelta = timedelta(days=7)
    keep_result: timedelta = timedelta(days=7)
    concurrency_key: Callable[[str, Any], str] = field(default=lambda _target, _payload: "")
    unique: bool = False

    def __post_init__(self) -> None:
        """Refuses a kind that cannot work."""
        names = [step.name for step in self.steps]
        if (self.handler is None) == (not self.steps):
            raise ValueError(f"{self.name}: a kind has a handler or steps")
        if len(set(names)) != len(names):
            raise ValueError(f"{self.name}: two steps have one name")

    @property
    def seconds(self) -> float:
        """Longest run of one attempt."""
        return self.timeout.total_seconds()

    def fits(self, target: str) -> bool:
        """Whether a target can be given to it."""
        parts = target.split("/")
        return parts[0] == self.targets and self.depth in (0, len(parts))

    def order(
        self, target: str, creator: str, payload: Message | None = None, *, priority: int = 0, run_time: datetime | None = None,
        idempotency_key: str | None = None, owner: str | None = None, replay_of: uuid.UUID | None = None,
    ) -> Order:  # fmt: skip
        """An order of this kind, with its keys."""
        given = payload if payload is not None else self.payload()
        arguments = to_json(given)
        key = self.concurrency_key(target, given)
        return Order(
            kind=self.name, target=target, creator=creator, owner=owner, payload=arguments, queue=self.queue, priority=priority,
            run_time=run_time, max_attempts=self.max_attempts, concurrency_key=key or None, idempotency_key=idempotency_key,
            pending_key=f"{self.name}/{target}/{sorted(arguments.items())}" if self.unique else None, replay_of=replay_of,
        )  # fmt: skip

    def parse(self, arguments: Mapping[str, Any], *, strict: bool = False) -> Message:
        """The payload from its JSON form.

        Args:
            arguments: JSON.
            strict: unknown fields are refused: they come from a user. Stored ones may be of another version.

        Raises:
            Invalid: it is not of the kind's type.
        """
        made = self.payload()
        if arguments:
            try:
                json_format.ParseDict(dict(arguments), made, ignore_unknown_fields=not strict)
            except json_format.ParseError as error:
                raise Invalid.fields([Violation("job.payload", f"is no {self.payload.DESCRIPTOR.name}: {error}")]) from error
        return made


def to_json(message: Message) -> dict[str, Any]:
    """A payload or result as it is stored: JSON."""
    if not message.ByteSize():
        return {}
    found: dict[str, Any] = json_format.MessageToDict(message)
    return found


def kinds(*known: Kind) -> dict[str, Kind]:
    """Kinds by name; a name given twice is refused."""
    found = {kind.name: kind for kind in known}
    if len(found) != len(known):
        raise ValueError("two kinds have one name")
    return found
