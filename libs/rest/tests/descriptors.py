"""Message types that nobody wrote: hypothesis draws descriptors with fields of every kind, nested, in oneofs, lists and maps."""

from __future__ import annotations

import itertools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor
from hypothesis import strategies as st

from libs.rest.tests.shapes import SCALARS, WELL_KNOWN, WELL_KNOWN_FILES

F = descriptor_pb2.FieldDescriptorProto
_number = itertools.count()
_WORDS = ["name", "display_name", "a", "a_b", "x1_y2", "class", "from", "_lead", "m", "d", "v", "value", "aB", "fooBar_baz"]
_KEYS = [F.TYPE_STRING, F.TYPE_INT32, F.TYPE_INT64, F.TYPE_UINT32, F.TYPE_UINT64, F.TYPE_SINT64, F.TYPE_FIXED32, F.TYPE_BOOL]


@st.composite
def descriptors(draw: st.DrawFn) -> Descriptor:
    """A message type of a new file; its fields may hold each other, an enum with gaps and aliases, and well-known types."""
    file = descriptor_pb2.FileDescriptorProto(name=f"drawn{next(_number)}.proto", syntax="proto3")
    file.package = "kubegems." + file.name.removesuffix(".proto")
    file.dependency.extend(WELL_KNOWN_FILES)
    _enum(draw, file)
    names = ["M0", "M1", "M2"][: draw(st.integers(1, 3))]
    for name in names:
        _message(draw, file, file.message_type.add(name=name), names)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindMessageTypeByName(f"{file.package}.M0")


def _enum(draw: st.DrawFn, file: Any) -> None:
    enum = file.enum_type.add(name="E")
    enum.value.add(name="E_UNSPECIFIED", number=0)
    numbers = draw(st.lists(st.integers(-(2**31), 2**31 - 1).filter(bool), max_size=3))
    for index, number in enumerate(numbers):
        enum.value.add(name=f"V{index}", number=number)
    if len(set(numbers)) < len(numbers):
        enum.options.allow_alias = True


def _message(draw: st.DrawFn, file: Any, message: Any, names: list[str]) -> None:
    words = draw(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=6, unique_by=lambda w: w.replace("_", "").lower()))
    for number, word in enumerate(words, 1):
        kind = draw(st.sampled_from(["scalar", "optional", "list", "map", "message", "messages", "known", "oneof"]))
        field = message.field.add(name=word, number=number * 3, label=F.LABEL_OPTIONAL)
        _typed(draw, file, field, kind, names)
        if kind == "map":
            _entry(draw, file, message, field, names)
        elif kind == "oneof":
            field.oneof_index = 0
    if any(field.HasField("oneof_index") for field in message.field):
        message.oneof_decl.add(name="choice")
    for field in message.field:  # synthetic oneofs stand behind the real one
        if field.proto3_optional:
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_of_{field.name}")


def _typed(draw: st.DrawFn, file: Any, field: Any, kind: str, names: list[str]) -> None:
    if kind in ("list", "messages", "map"):
        field.label = F.LABEL_REPEATED
    if kind in ("message", "messages"):
        field.type, field.type_name = F.TYPE_MESSAGE, f".{file.package}.{draw(st.sampled_from(names))}"
    elif kind == "known":
        field.type, field.type_name = F.TYPE_MESSAGE, f".google.protobuf.{draw(st.sampled_from(WELL_KNOWN))}"
    elif kind != "map":
        field.type = draw(st.sampled_from(SCALARS))
        if kind == "optional":
            field.proto3_optional = True
        if field.type == F.TYPE_ENUM:
            field.type_name = f".{file.package}.E"


def _entry(draw: st.DrawFn, file: Any, message: Any, field: Any, names: list[str]) -> None:
    camel = "".join(part[:1].upper() + part[1:] for part in field.name.split("_"))
    entry = message.nested_type.add(name=f"{camel}Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=F.LABEL_OPTIONAL, type=draw(st.sampled_from(_KEYS)))
    value = entry.field.add(name="value", number=2, label=F.LABEL_OPTIONAL)
    _typed(draw, file, value, draw(st.sampled_from(["scalar", "message", "known"])), names)
    field.type, field.type_name = F.TYPE_MESSAGE, f".{file.package}.{message.name}.{entry.name}"
