"""Which fields an Update changes."""

from __future__ import annotations

from collections.abc import Collection

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from libs.faults import Invalid

_NEVER = {"name", "uid", "etag", "create_time", "update_time"}


def paths(message: Message, mask: FieldMask, *, known: Collection[str]) -> frozenset[str]:
    """The fields to look at: those of the mask, or all that are set when it is empty; `*` means all known.

    Args:
        message: the new values.
        mask: what the caller wants changed.
        known: fields that an Update takes, those that it compares only (immutable ones) included.

    Raises:
        Invalid: the mask names a field that an Update does not take.
    """
    if not mask.paths:
        return frozenset(field.name for field, _ in message.ListFields() if field.name in known)
    if "*" in mask.paths:
        return frozenset(known)
    for path in mask.paths:
        if path not in known and path not in _NEVER:
            raise Invalid.one("update_mask", f"{path} cannot be changed; known: {', '.join(sorted(known))}")
    return frozenset(path for path in mask.paths if path in known)
