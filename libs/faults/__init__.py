"""Faults: what went wrong, said once, for programs and for people.

Raise a Fault when the caller should know; raise anything else when we should. A Fault carries a canonical gRPC code,
an UPPER_SNAKE reason a program may switch on, metadata, and a sentence for people: what was wrong, with which value,
what to do. libs/rpc and libs/rest turn it into the wire's form; nothing here knows a transport. It refuses to carry
secrets: pass no value of a field marked `secret`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """Canonical codes, with gRPC's numbers (google.rpc.Code)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: its dotted path in proto names, and what is wrong with the value given."""

    field: str
    description: str


@dataclass(eq=False)
class Fault(Exception):
    """Base of all faults.

    Attributes:
        message: sentence for people.
        metadata: facts for programs, strings only.
        violations: wrong fields, for INVALID_ARGUMENT.
        retry_after: when trying again can help.
    """

    message: str
    metadata: dict[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after: timedelta | None = None

    code: ClassVar[Code] = Code.UNKNOWN
    reason: ClassVar[str] = "UNKNOWN"

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class Invalid(Fault):
    """The request is wrong whatever the state of the system."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"

    @classmethod
    def fields(cls, violations: Iterable[Violation]) -> Invalid:
        """A fault for wrong fields, all at once."""
        found = tuple(violations)
        return cls("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)

    @classmethod
    def one(cls, path: str, description: str) -> Invalid:
        """A fault for one wrong field."""
        return cls.fields([Violation(path, description)])


class NotFound(Fault):
    """There is no such thing, or the caller may not know of it."""

    code = Code.NOT_FOUND
    reason = "NOT_FOUND"


class AlreadyExists(Fault):
    """The name is, or was, taken."""

    code = Code.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"


class PermissionDenied(Fault):
    """The caller is known and may not."""

    code = Code.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unauthenticated(Fault):
    """The caller has not proved who it is."""

    code = Code.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Precondition(Fault):
    """The state of the system does not allow it; changing that state first may help."""

    code = Code.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class Stale(Fault):
    """The caller's etag is not the current one."""

    code = Code.ABORTED
    reason = "ETAG_MISMATCH"


class Exhausted(Fault):
    """Too much, too often; `retry_after` says when to come back."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"


class Unavailable(Fault):
    """Something needed is away; trying again can help."""

    code = Code.UNAVAILABLE
    reason = "UNAVAILABLE"


class DeadlineExceeded(Fault):
    """The caller's time is up."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unimplemented(Fault):
    """There is no such method."""

    code = Code.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class Internal(Fault):
    """A mistake of ours; the message holds a correlation id and nothing else."""

    code = Code.INTERNAL
    reason = "INTERNAL"


_BY_CODE: dict[Code, type[Fault]] = {
    c.code: c
    for c in (
        Invalid, NotFound, AlreadyExists, PermissionDenied, Unauthenticated, Precondition, Stale, Exhausted, Unavailable,
        DeadlineExceeded, Unimplemented, Internal,
    )
}  # fmt: skip


def rebuilt(code: Code, reason: str, message: str, metadata: dict[str, str] | None = None) -> Fault:
    """The fault that another process told us about, with its own reason."""
    base = _BY_CODE.get(code, Fault)
    fault = base(message, metadata or {})
    if (base.code, base.reason) != (code, reason):
        fault.__class__ = type(base.__name__, (base,), {"code": code, "reason": reason})
    return fault
