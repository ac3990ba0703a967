"""What a kind of job promises: who may start it, what does it, how long and how often it is tried."""

from __future__ import annotations

import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import empty_pb2, json_format
from google.protobuf.message import Message

from libs.faults import Invalid, Violation
from libs.jobs.context import Context
from libs.jobs.domain import Order, to_json

FIRST_RETRY = timedelta(seconds=2)
LONGEST_RETRY = timedelta(minutes=10)


def backoff(attempt: int, *, first: timedelta = FIRST_RETRY, longest: timedelta = LONGEST_RETRY) -> timedelta:
    """When to try again after an attempt (from 1): doubled each time, with jitter on the upper half."""
    doublings = min(attempt - 1, 20)
    most: timedelta = min(first * (1 << doublings), longest)
    return most * (0.5 + random.random() / 2)  # noqa: S311 -- spreads load, keeps no secret


Handler = Callable[[Context, Any], Awaitable[Message | None]]


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


def kinds(*known: Kind) -> dict[str, Kind]:
    """Kinds by name; a name given twice is refused."""
    found = {kind.name: kind for kind in known}
    if len(found) != len(known):
        raise ValueError("two kinds have one name")
    return found
