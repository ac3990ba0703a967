"""JSON → the messages with a JSON form of their own, save Any: Timestamp, Duration, FieldMask, wrappers, Struct, Value, ListValue."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor

from libs.faults import Violation
from libs.rest.scalars import scalar

MAX_DEPTH = 64
_SHOWN = 64
Found = list[Violation]
Reader = Callable[[Any, Any, str, Found, int], None]  # (message, value, path, violations, depth)


def any_type(url: str) -> Descriptor | None:
    """The type that an Any's URL names; None for one that this process does not know."""
    host, slash, name = url.rpartition("/")
    try:
        return descriptor_pool.Default().FindMessageTypeByName(name) if host and slash and name else None
    except KeyError:
        return None


def shown(value: Any) -> str:
    """A value as it stands in a message, cut."""
    text = json.dumps(value, default=str) if not isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def wrong(value: Any, error: Exception, *, secret: bool = False) -> str:
    """What is wrong with a value, which is told unless it is secret."""
    return f"{'the value' if secret else shown(value)} {said(error)}"


def said(error: Exception) -> str:
    """An error of a reader in words; a RecursionError has none of its own."""
    return "is nested too deep" if isinstance(error, RecursionError) else str(error)


def _struct(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, dict):
        found.append(Violation(path or "body", f"{shown(value)} must be an object"))
        return
    message.Clear()
    for key, item in value.items():
        _value(message.fields[key], item, f"{path}[{key[:_SHOWN]}]", found, depth + 1)


def _list(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, list):
        found.append(Violation(path or "body", f"{shown(value)} must be a list"))
        return
    message.ClearField("values")
    for index, item in enumerate(value):
        _value(message.values.add(), item, f"{path}[{index}]", found, depth + 1)


def _value(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if depth > MAX_DEPTH:
        found.append(Violation(path, "is nested too deep"))
    elif value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, str):
        _string(message, value, path, found)
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        _struct(message.struct_value, value, path, found, depth)
    elif isinstance(value, list):
        message.list_value.SetInParent()
        _list(message.list_value, value, path, found, depth)
    else:
        _number(message, value, path, found)


def _string(message: Any, value: str, path: str, found: Found) -> None:
    try:
        message.string_value = value
    except (ValueError, UnicodeEncodeError):
        found.append(Violation(path, "holds half of a character"))


def _number(message: Any, value: float, path: str, found: Found) -> None:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isfinite(number):
        message.number_value = number
    else:
        found.append(Violation(path, "is too large"))


def _text(message: Any, value: Any, path: str, found: Found, _depth: int) -> None:
    """Timestamp, Duration, FieldMask."""
    try:
        message.FromJsonString(value)
    except (ValueError, AttributeError, TypeError, OverflowError):
        kind = message.DESCRIPTOR.name
        found.append(Violation(path, f"{shown(value)} is no {kind}, such as {_EXAMPLES[kind]}"))


def _wrapper(message: Any, value: Any, path: str, found: Found, _depth: int) -> None:
    try:
        message.value = scalar(message.DESCRIPTOR.fields_by_name["value"])(value)
    except (ValueError, TypeError) as error:
        found.append(Violation(path, wrong(value, error)))


_EXAMPLES = {"Timestamp": "2026-01-01T00:00:00Z", "Duration": "1.5s", "FieldMask": "displayName,quota"}
_READERS: dict[str, Reader] = {
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _value,
    "google.protobuf.ListValue": _list,
    **{f"google.protobuf.{name}": _text for name in _EXAMPLES},
}


def reader(descriptor: Descriptor) -> Reader | None:
    """How JSON becomes a message of a type; None for one without a form of its own."""
    return _wrapper if descriptor.file.name == "google/protobuf/wrappers.proto" else _READERS.get(descriptor.full_name)
