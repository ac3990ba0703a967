"""proto3 JSON → messages: one table per message type, compiled from its descriptor at the first use.

Takes what protobuf's `json_format.ParseDict` takes, except what is plainly a mistake: text that is no base64 for bytes,
numbers in texts with underscores or foreign digits, floats and digits in texts for enums. Wrong values are told all at
once, each with its path in proto names; an unknown field is wrong.
"""

from __future__ import annotations

import json
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from libs.faults import Invalid, Violation
from libs.rest import wellknown
from libs.rest.scalars import scalar
from libs.rest.wellknown import MAX_DEPTH, Found, Reader, any_type, said, shown, wrong
from libs.rpc.fields import rule

__all__ = ["decode", "into", "scalar"]
_SHOWN = 64
_tables: dict[str, dict[str, Field]] = {}


class Field:
    """How one field is read."""

    __slots__ = ("field", "name", "null", "oneof", "set")

    def __init__(self, field: FieldDescriptor, setter: Reader) -> None:
        self.field, self.name, self.set = field, field.name, setter
        self.oneof = field.containing_oneof.name if field.containing_oneof is not None else ""
        of = field.message_type or field.enum_type
        self.null = of is not None and of.full_name in ("google.protobuf.Value", "google.protobuf.NullValue") and not field.is_repeated


def decode(raw: bytes, message: Message) -> None:
    """Reads a JSON document into a message; raises Invalid naming each wrong field."""
    found: Found = []
    into(parse(raw), message, "", found)
    if found:
        raise Invalid.fields(found)


def parse(raw: bytes) -> Any:
    """The document; Invalid when it is no JSON, has a key twice, or is nested too deep."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"the body is no JSON: {said(error)}") from error


def into(value: Any, message: Message, path: str, found: Found, depth: int = 0) -> None:
    """Reads a JSON value into a message; wrong fields are added to `found` with their paths."""
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    own = _known(descriptor)
    if own is not None:
        own(message, value, path, found, depth)
    else:
        _regular(message, value, path, found, depth)


def into_field(value: Any, message: Message, name: str, found: Found) -> None:
    """Reads a JSON value into one field of a message, as the body that fills a field does."""
    field = _table(cast("Descriptor", message.DESCRIPTOR))[name]
    if value is None and not field.null:
        message.ClearField(name)
    else:
        field.set(message, value, name, found, 0)


def _regular(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, dict):
        found.append(Violation(path or "body", f"{shown(value)} must be an object"))
        return
    if depth > MAX_DEPTH:
        found.append(Violation(path, "is nested too deep"))
        return
    prefix = path + "." if path else ""
    table = _table(message.DESCRIPTOR)
    seen: dict[str, str] = {}
    for key, given in value.items():
        field = table.get(key)
        if field is None:
            found.append(Violation(prefix + key[:_SHOWN], "no such field"))
            continue
        if twice := _twice(field, key, given, seen):
            found.append(Violation(prefix + field.name, twice))
            continue
        if given is None and not field.null:
            message.ClearField(field.name)
        else:
            field.set(message, given, prefix + field.name, found, depth)


def _twice(field: Field, key: str, given: Any, seen: dict[str, str]) -> str:
    """What is wrong when a field, or another one of its oneof, was given before."""
    if field.name in seen:
        return f"is given twice, as {seen[field.name]} and {key}"
    seen[field.name] = key
    if field.oneof and given is not None:
        if other := seen.get(f"oneof {field.oneof}"):
            return f"cannot be given together with {other}"
        seen[f"oneof {field.oneof}"] = key
    return ""


def _table(descriptor: Descriptor) -> dict[str, Field]:
    table = _tables.get(descriptor.full_name)
    if table is None:
        table = _tables[descriptor.full_name] = {}
        for descriptor_field in descriptor.fields:
            field = Field(descriptor_field, _setter(descriptor_field))
            table[field.name] = field
        table |= {f.field.json_name: f for f in list(table.values())}
    return table


def _setter(field: FieldDescriptor) -> Reader:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(field)
    if field.is_repeated:
        return _list(field)
    name = field.name
    if field.message_type is not None:

        def set_message(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
            inner = getattr(message, name)
            inner.SetInParent()
            into(value, inner, path, found, depth + 1)

        return set_message
    read = scalar(field)
    secret = rule(field).secret

    def set_scalar(message: Any, value: Any, path: str, found: Found, _depth: int) -> None:
        try:
            setattr(message, name, read(value))
        except (ValueError, TypeError) as error:
            found.append(Violation(path, wrong(value, error, secret=secret)))

    return set_scalar


def _list(field: FieldDescriptor) -> Reader:
    name, of = field.name, field.message_type
    read = None if of is not None else scalar(field)
    nulls = of is not None and of.full_name == "google.protobuf.Value"

    def set_list(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
        if not isinstance(value, list):
            found.append(Violation(path, f"{shown(value)} must be a list"))
            return
        items = getattr(message, name)
        for index, item in enumerate(value):
            where = f"{path}[{index}]"
            if item is None and not nulls:
                found.append(Violation(where, "null is no item of a list"))
            elif read is None:
                into(item, items.add(), where, found, depth + 1)
            else:
                try:
                    items.append(read(item))
                except (ValueError, TypeError) as error:
                    found.append(Violation(where, wrong(item, error)))

    return set_list


def _map(field: FieldDescriptor) -> Reader:
    assert field.message_type is not None
    name, entry = field.name, field.message_type.fields_by_name
    read_key, of = scalar(entry["key"], key=True), entry["value"].message_type
    read = None if of is not None else scalar(entry["value"])

    def set_map(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
        if not isinstance(value, dict):
            found.append(Violation(path, f"{shown(value)} must be an object"))
            return
        items = getattr(message, name)
        for key, item in value.items():
            where = f"{path}[{key[:_SHOWN]}]"
            try:
                if read is None:
                    into(item, items[read_key(key)], where, found, depth + 1)
                else:
                    items[read_key(key)] = read(item)
            except (ValueError, TypeError) as error:
                found.append(Violation(where, wrong(item, error)))

    return set_map


def _known(descriptor: Descriptor) -> Reader | None:
    return _any if descriptor.full_name == "google.protobuf.Any" else wellknown.reader(descriptor)


def _any(message: Any, value: Any, path: str, found: Found, depth: int) -> None:
    if not isinstance(value, dict):
        found.append(Violation(path or "body", f"{shown(value)} must be an object"))
        return
    if not value:
        return
    url, prefix = value.get("@type"), path + "." if path else ""
    descriptor = any_type(url) if isinstance(url, str) else None
    if descriptor is None:
        found.append(Violation(prefix + "@type", f"{shown(url)} is no type known here" if url else "is required"))
        return
    inner: Any = GetMessageClass(descriptor)()
    rest = {key: item for key, item in value.items() if key != "@type"}
    if _known(descriptor) is None:
        into(rest, inner, path, found, depth + 1)
    elif rest.keys() != {"value"}:
        found.append(Violation(prefix + "value", f"alone must stand beside @type for a {descriptor.name}"))
    elif rest["value"] is None and descriptor.full_name != "google.protobuf.Value":
        found.append(Violation(prefix + "value", f"null is no {descriptor.name}"))
    else:
        into(rest["value"], inner, prefix + "value", found, depth + 1)
    if not found:
        message.type_url, message.value = url, inner.SerializeToString()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} is given twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
