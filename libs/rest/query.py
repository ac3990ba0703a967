"""Query parameters → the fields that neither path nor body fills: dotted, repeated, and maps as `field[key]=value`."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.faults import Violation
from libs.rest import decode
from libs.rest.scalars import scalar

_MAP_KEY = re.compile(r"(.+?)\[([^\[\]]+)\]")
_SHOWN = 64


def fill(message: Message, pairs: list[tuple[str, str]], found: list[Violation], *, taken: set[str], body: str) -> None:
    """Sets fields from parameters; what is wrong is added to `found`.

    Args:
        message: the request.
        pairs: names and values, decoded, in order.
        found: violations.
        taken: paths that the URL's path fills.
        body: field that the body fills, or `*`.
    """
    seen: set[str] = set()
    for name, value in pairs:
        if body == "*":
            found.append(Violation(name[:_SHOWN], "belongs into the body, not into the query"))
            continue
        problem = _one(message, name, value, seen, taken=taken, body=body)
        if problem:
            found.append(Violation(name[:_SHOWN], problem))


def _one(message: Message, name: str, value: str, seen: set[str], *, taken: set[str], body: str) -> str:
    """Sets one parameter; what is wrong with it, or nothing."""
    match = _MAP_KEY.fullmatch(name)
    path, key = (match[1], match[2]) if match else (name, None)
    walked = _walk(message, path)
    if walked is None:
        return "no such parameter"
    target, field, proto_path = walked
    if proto_path in taken or (body and proto_path.split(".")[0] == body):
        return "is given by the path or the body already"
    if not field.is_repeated and proto_path in seen:
        return "is given twice"
    seen.add(proto_path)
    try:
        return _set(target, field, key, value)
    except (ValueError, TypeError) as error:
        return f"{value[:_SHOWN]!r} {error}"


def _walk(message: Any, path: str) -> tuple[Any, FieldDescriptor, str] | None:
    """The message that holds the last field of a path in proto or JSON names, that field, and the path in proto names."""
    names: list[str] = []
    *above, last = path.split(".")
    for name in above:
        field = _field(message.DESCRIPTOR, name)
        if field is None or field.message_type is None or field.is_repeated:
            return None
        names.append(field.name)
        message = getattr(message, field.name)
    field = _field(message.DESCRIPTOR, last)
    return (message, field, ".".join([*names, field.name])) if field is not None else None


def _set(target: Any, field: FieldDescriptor, key: str | None, value: str) -> str:
    of = field.message_type
    if of is not None and of.GetOptions().map_entry:
        entry = of.fields_by_name
        if key is None or entry["value"].message_type is not None:
            return "is a map: give it as name[key]=value"
        getattr(target, field.name)[scalar(entry["key"], key=True)(key)] = scalar(entry["value"], text=True)(value)
        return ""
    if key is not None:
        return "is no map"
    if of is not None:
        return _text_message(target, field, value)
    read = scalar(field, text=True)
    if field.is_repeated:
        getattr(target, field.name).append(read(value))
    else:
        setattr(target, field.name, read(value))
    return ""


def _text_message(target: Any, field: FieldDescriptor, value: str) -> str:
    """Timestamps, durations, masks and wrappers, whose JSON form is one text; other messages have no query form."""
    of = field.message_type
    assert of is not None
    if field.is_repeated or not (of.name in ("Timestamp", "Duration", "FieldMask") or of.file.name.endswith("wrappers.proto")):
        return "is an object; give its fields as name.field=value"
    found: list[Violation] = []
    inner = getattr(target, field.name)
    inner.SetInParent()
    if of.file.name.endswith("wrappers.proto"):
        inner.value = scalar(of.fields_by_name["value"], text=True)(value)
    else:
        decode.into(value, inner, field.name, found)
    return found[0].description if found else ""


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    field = descriptor.fields_by_name.get(name)
    if field is None:
        field = next((f for f in descriptor.fields if f.json_name == name), None)
    return field
