"""A message with every kind of field, and hypothesis strategies for any message."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from kubegems.audit.v1 import audit_service_pb2

F = descriptor_pb2.FieldDescriptorProto
_WRAPPED = ("Bool", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double", "String", "Bytes")
WELL_KNOWN = ["Timestamp", "Duration", "FieldMask", "Struct", "Value", "ListValue", "Empty", "Any", *(f"{name}Value" for name in _WRAPPED)]
SCALARS = [
    F.TYPE_DOUBLE, F.TYPE_FLOAT, F.TYPE_INT64, F.TYPE_UINT64, F.TYPE_INT32, F.TYPE_FIXED64, F.TYPE_FIXED32, F.TYPE_BOOL, F.TYPE_STRING,
    F.TYPE_BYTES, F.TYPE_UINT32, F.TYPE_ENUM, F.TYPE_SFIXED32, F.TYPE_SFIXED64, F.TYPE_SINT32, F.TYPE_SINT64,
]  # fmt: skip


WELL_KNOWN_FILES = [
    part.DESCRIPTOR.name for part in (any_pb2, timestamp_pb2, duration_pb2, field_mask_pb2, struct_pb2, empty_pb2, wrappers_pb2)
]
_MAPS = (("string", "string"), ("int64", "double"), ("bool", "bytes"), ("string", "message"), ("string", "enum"))


def _entry(every: descriptor_pb2.DescriptorProto, key: str, value: str) -> str:
    """Adds the entry type of a map field; its full name."""
    name = f"Map{key.title()}{value.title()}Entry"
    entry = every.nested_type.add(name=name)
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=F.LABEL_OPTIONAL, type=F.Type.Value(f"TYPE_{key.upper()}"))
    of = {"message": ".kubegems.shapes.Every", "enum": ".kubegems.shapes.Every.Color"}.get(value)
    entry.field.add(name="value", number=2, label=F.LABEL_OPTIONAL, type=F.Type.Value(f"TYPE_{value.upper()}"), type_name=of)
    return f".kubegems.shapes.Every.{name}"


def _every() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="every.proto", package="kubegems.shapes", syntax="proto3")
    file.dependency.extend(WELL_KNOWN_FILES)
    every = file.message_type.add(name="Every")
    color = every.enum_type.add(name="Color")
    color.value.add(name="COLOR_UNSPECIFIED", number=0)
    color.value.add(name="RED", number=1)
    color.value.add(name="BLUE", number=7)
    every.oneof_decl.add(name="choice")
    number = 0

    def add(name: str, kind: int, of: str = "", **more: Any) -> None:
        nonlocal number
        number += 1
        every.field.add(name=name, number=number, type=kind, type_name=of or None, **{"label": 1, **more})

    for kind in SCALARS:
        word = F.Type.Name(kind).removeprefix("TYPE_").lower()
        of = ".kubegems.shapes.Every.Color" if kind == F.TYPE_ENUM else ""
        add(f"one_{word}", kind, of)
        add(f"many_{word}", kind, of, label=3)
    for name in WELL_KNOWN:
        add(f"a_{name.lower()}", F.TYPE_MESSAGE, f".google.protobuf.{name}")
    add("many_timestamp", F.TYPE_MESSAGE, ".google.protobuf.Timestamp", label=3)
    add("child", F.TYPE_MESSAGE, ".kubegems.shapes.Every")
    add("children", F.TYPE_MESSAGE, ".kubegems.shapes.Every", label=3)
    add("text_choice", F.TYPE_STRING, oneof_index=0)
    add("number_choice", F.TYPE_INT64, oneof_index=0)
    add("child_choice", F.TYPE_MESSAGE, ".kubegems.shapes.Every", oneof_index=0)
    every.oneof_decl.add(name="_maybe")
    add("maybe", F.TYPE_INT32, oneof_index=1, proto3_optional=True)
    for key, value in _MAPS:
        add(f"map_{key}_{value}", F.TYPE_MESSAGE, _entry(every, key, value), label=3)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return GetMessageClass(descriptor_pool.Default().FindMessageTypeByName("kubegems.shapes.Every"))


Every = _every()
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_BITS: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.cpp_type in _BITS:
        return st.integers(*_BITS[field.cpp_type])
    if field.enum_type is not None:
        return st.sampled_from([v.number for v in field.enum_type.values])
    return {
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_STRING: _TEXT,
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=8),
        FieldDescriptor.TYPE_FLOAT: st.floats(width=32),
        FieldDescriptor.TYPE_DOUBLE: st.floats(),
    }[field.type]


def messages(descriptor: Descriptor, depth: int = 2) -> st.SearchStrategy[Any]:
    """Any message of a type, with at most so many levels below it."""
    return st.composite(_draw)(descriptor, depth)


def _draw(draw: st.DrawFn, descriptor: Descriptor, depth: int) -> Any:
    message = GetMessageClass(descriptor)()
    special = _SPECIAL.get(descriptor.name) if descriptor.full_name.startswith("google.protobuf.") else None
    if special is not None:
        special(draw, message)
        return message
    fields = [f for f in descriptor.fields if depth or f.message_type is None]
    for field in draw(st.lists(st.sampled_from(fields), max_size=6, unique_by=lambda f: f.number)) if fields else ():
        _fill(draw, message, field, depth)
    return message


def _fill(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    of = field.message_type
    if of is not None and of.GetOptions().map_entry:
        entry, items = of.fields_by_name, getattr(message, field.name)
        for key in draw(st.lists(_scalar(entry["key"]), max_size=2)):
            if entry["value"].message_type is not None:
                items[key].CopyFrom(_draw(draw, entry["value"].message_type, depth - 1))
            else:
                items[key] = draw(_scalar(entry["value"]))
    elif of is not None and field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            getattr(message, field.name).add().CopyFrom(_draw(draw, of, depth - 1))
    elif of is not None:
        getattr(message, field.name).CopyFrom(_draw(draw, of, depth - 1))
        getattr(message, field.name).SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
    else:
        setattr(message, field.name, draw(_scalar(field)))


def _timestamp(draw: st.DrawFn, message: Any) -> None:
    message.seconds = draw(st.integers(-62135596800, 253402300799))
    message.nanos = draw(st.one_of(st.just(0), st.integers(0, 999).map(lambda n: n * 1_000_000), st.integers(0, 999_999_999)))


def _duration(draw: st.DrawFn, message: Any) -> None:
    message.FromTimedelta(draw(st.timedeltas(dt.timedelta(days=-3000), dt.timedelta(days=3000))))


def _mask(draw: st.DrawFn, message: Any) -> None:
    message.paths.extend(draw(st.lists(st.sampled_from(["a", "display_name", "quota.hard"]), max_size=3)))


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


def _struct(draw: st.DrawFn, message: Any) -> None:
    message.update(draw(st.dictionaries(_TEXT, _JSON, max_size=3)))


def _value(draw: st.DrawFn, message: Any) -> None:
    value = draw(_JSON)
    if value is None:
        message.null_value = 0
    elif isinstance(value, dict):
        message.struct_value.update(value)
        message.struct_value.SetInParent()
    elif isinstance(value, list):
        message.list_value.extend(value)
        message.list_value.SetInParent()
    else:
        setattr(message, {bool: "bool_value", str: "string_value"}.get(type(value), "number_value"), value)


def _list(draw: st.DrawFn, message: Any) -> None:
    message.extend(draw(st.lists(_JSON, max_size=3)))


def _any(draw: st.DrawFn, message: Any) -> None:
    """Packs a message without maps, whose order in bytes is not fixed; or nothing."""
    kinds = [None, wrappers_pb2.Int64Value, wrappers_pb2.BytesValue, timestamp_pb2.Timestamp, duration_pb2.Duration]
    kind = draw(st.sampled_from([*kinds, field_mask_pb2.FieldMask, empty_pb2.Empty, audit_service_pb2.ListAuditEventsRequest, any_pb2.Any]))
    if kind is not None:
        message.Pack(_draw(draw, kind.DESCRIPTOR, 1) if kind is not any_pb2.Any else any_pb2.Any())


_SPECIAL: dict[str, Any] = {"Any": _any}
_SPECIAL |= {"Timestamp": _timestamp, "Duration": _duration, "FieldMask": _mask, "Struct": _struct, "Value": _value, "ListValue": _list}


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values in which NaN is itself, and 1 is not true."""
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    return type(left) is type(right) and bool(left == right)
