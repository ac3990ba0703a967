"""JSON → messages that can hold anything: Struct, Value, ListValue and Any."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message_factory import GetMessageClass

from libs.faults import Violation
from libs.rest import decode

MAX_DEPTH = 64
Found = list[Violation]
Reader = Callable[[Any, Any, str, Found, int], None]  # (message, value, path, violations, depth)


def any_type(url: str) -> Descriptor | None:
    """The type that an Any's URL names; None for one that this process does not know."""
    host, slash, name = url.rpartition("/")
    try:
        return descriptor_pool.Default().FindMessageTypeByName(name) if host and slash and name else None
    except KeyError:
        return None


def _struct(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, dict):
        found.append(Violation(path or "body", f"{decode.shown(value)} must be an object"))
        return
    message.Clear()
    for key, item in value.items():
        _value(message.fields[key], item, f"{path}[{key[:MAX_DEPTH]}]", found, depth + 1)


def _list(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, list):
        found.append(Violation(path or "body", f"{decode.shown(value)} must be a list"))
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
        _text(message, value, path, found)
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        _struct(message.struct_value, value, path, found, depth)
    elif isinstance(value, list):
        message.list_value.SetInParent()
        _list(message.list_value, value, path, found, depth)
    else:
        _number(message, value, path, found)


def _text(message: Any, value: str, path: str, found: Found) -> None:
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


def _any(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, dict):
        found.append(Violation(path or "body", f"{decode.shown(value)} must be an object"))
        return
    if not value:
        return
    url, prefix = value.get("@type"), path + "." if path else ""
    descriptor = any_type(url) if isinstance(url, str) else None
    if descriptor is None:
        found.append(Violation(prefix + "@type", f"{decode.shown(url)} is no type known here" if url else "is required"))
        return
    inner: Any = GetMessageClass(descriptor)()
    rest = {key: item for key, item in value.items() if key != "@type"}
    if not decode.known(descriptor):
        decode.into(rest, inner, path, found, depth + 1)
    elif rest.keys() != {"value"}:
        found.append(Violation(prefix + "value", f"alone must stand beside @type for a {descriptor.name}"))
    elif rest["value"] is None and descriptor.full_name != "google.protobuf.Value":
        found.append(Violation(prefix + "value", f"null is no {descriptor.name}"))
    else:
        decode.into(rest["value"], inner, prefix + "value", found, depth + 1)
    if not found:
        message.type_url, message.value = url, inner.SerializeToString()


READERS: dict[str, Reader] = {
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _value,
    "google.protobuf.ListValue": _list,
    "google.protobuf.Any": _any,
}
