"""What a record's name looks like."""

from __future__ import annotations

import uuid

from libs.faults import NotFound

PREFIX = "audit/events/"


def event_name(id_: uuid.UUID) -> str:
    """`audit/events/{event}`."""
    return f"{PREFIX}{id_}"


def event_id(name: str) -> uuid.UUID:
    """The id in a record's name; NotFound when it cannot be one."""
    try:
        return uuid.UUID(name.removeprefix(PREFIX))
    except ValueError as error:
        raise missing(name) from error


def missing(name: str) -> NotFound:
    """There is no such record, or it is not for the reader."""
    return NotFound(f"there is no {name}", {"resource": name})
