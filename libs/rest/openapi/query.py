"""Query parameters: the request's fields that neither path nor body fills."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from libs.rest.binding import Binding
from libs.rest.openapi import fields as keywords
from libs.rest.openapi.fields import Json, is_map
from libs.rest.openapi.schemas import Schemas
from libs.rpc import fields

_TEXTS = ("google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask")
_DEEP = 3


def parameters(binding: Binding, schemas: Schemas) -> list[Json]:
    """All of a binding, dotted where they lie in a message."""
    if binding.body == "*" or binding.method.uploads:
        return []
    taken = {v.path for v in binding.template.variables} | {binding.body}
    return list(_fields(binding.method.descriptor.input_type, schemas, taken, ("", "")))


def _fields(descriptor: Descriptor, schemas: Schemas, taken: Collection[str], above: tuple[str, str], depth: int = 0) -> Iterator[Json]:
    """Of one message; `above` is where it lies, in proto and in JSON names."""
    for field in descriptor.fields:
        path, name = above[0] + field.name, above[1] + field.json_name
        if path in taken or fields.rule(field).output_only:
            continue
        of = field.message_type
        if of is None or is_map(field) or of.full_name in _TEXTS or of.file.name == "google/protobuf/wrappers.proto":
            if (schema := _schema(field, schemas)) is not None:
                yield _parameter(field, name, schema, schemas)
        elif not field.is_repeated and keywords.known(of) is None and depth < _DEEP:
            yield from _fields(of, schemas, taken, (path + ".", name + "."), depth + 1)


def _schema(field: FieldDescriptor, schemas: Schemas) -> Json | None:
    """None for what has no form in a query: lists and maps of messages."""
    of: Any = field.message_type
    value = of.fields_by_name["value"] if is_map(field) else field
    if value.message_type is not None and (is_map(field) or field.is_repeated):
        return None
    return schemas.field(field, sent=True, text=True)


def _parameter(field: FieldDescriptor, name: str, schema: Json, schemas: Schemas) -> Json:
    found: Json = {"name": name, "in": "query", "schema": schema}
    if said := schemas.described(field):
        found["description"] = said
    if fields.rule(field).required and "." not in name:
        found["required"] = True
    if is_map(field):
        found |= {"style": "deepObject", "explode": True}
    if field.GetOptions().deprecated:
        found["deprecated"] = True
    return found
