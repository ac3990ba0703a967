"""Messages as component schemas: one for what comes back, one (`.input`) for what is sent."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from kubegems.policy.v1 import policy_pb2
from libs.rest.openapi import fields as keywords
from libs.rest.openapi.comments import Comments
from libs.rest.openapi.fields import Json, is_map
from libs.rpc import fields

_OURS = "kubegems."
INPUT = ".input"


class Schemas:
    """Makes component schemas as they are asked for; `components` holds them by name.

    Args:
        comments: descriptions by full name.
    """

    def __init__(self, comments: Comments) -> None:
        self.components: dict[str, Json] = {}
        self._comments = comments

    def message(self, descriptor: Descriptor, *, sent: bool) -> Json:
        """A reference to a message's schema, or the schema itself when its JSON form is its own."""
        own = keywords.known(descriptor)
        if own is not None:
            return own
        name = component(descriptor.full_name) + (INPUT if sent else "")
        if name not in self.components:
            self.components[name] = {}  # in place before its fields, since types may hold themselves
            self.components[name] = self.object(descriptor, sent=sent)
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, descriptor: Descriptor, *, sent: bool, elsewhere: Collection[str] = ()) -> Json:
        """A message's schema itself.

        Args:
            descriptor: no type with a JSON form of its own.
            sent: whether for requests.
            elsewhere: fields that the path gives; the body need not repeat them.
        """
        found: Json = {"type": "object"}
        if said := self._comments.get(descriptor.full_name):
            found["description"] = said
        found["properties"] = {f.json_name: self._property(f, sent=sent, elsewhere=f.name in elsewhere) for f in descriptor.fields}
        if sent:
            found["additionalProperties"] = False
            required = [f.json_name for f in descriptor.fields if fields.rule(f).required and f.name not in elsewhere]
            if required:
                found["required"] = required
            found |= _together(descriptor)
        return found

    def field(self, field: FieldDescriptor, *, sent: bool, text: bool = False) -> Json:
        """A field's schema with its rule, without its description."""
        if is_map(field):
            assert field.message_type is not None
            value = field.message_type.fields_by_name["value"]
            schema: Json = {"type": "object", "additionalProperties": self._one(value, sent=sent, text=text)}
        elif field.is_repeated:
            schema = {"type": "array", "items": self._one(field, sent=sent, text=text)}
        else:
            schema = self._one(field, sent=sent, text=text)
        return keywords.bound(field, schema) if sent else schema

    def said(self, descriptor: Descriptor) -> str:
        """A message's comment."""
        return self._comments.get(descriptor.full_name, "")

    def described(self, field: FieldDescriptor) -> str:
        """A field's comment, and what the values of its enum mean."""
        said = self._comments.get(field.full_name, "")
        return said + self._values(field.enum_type) if field.enum_type is not None else said

    def _one(self, field: FieldDescriptor, *, sent: bool, text: bool) -> Json:
        if field.message_type is not None:
            return self.message(field.message_type, sent=sent)
        return keywords.plain(field, text=text, sent=sent)

    def _property(self, field: FieldDescriptor, *, sent: bool, elsewhere: bool) -> Json:
        rule = fields.rule(field)
        free = rule.output_only or elsewhere
        schema = self.field(field, sent=sent and not rule.output_only)
        found: Json = {"description": said} if (said := self.described(field)) else {}
        if free and sent:
            found["readOnly"] = True
        if rule.immutable:
            found["x-kubegems-immutable"] = True
        if field.GetOptions().deprecated:
            found["deprecated"] = True
        return schema | found

    def _values(self, enum: EnumDescriptor) -> str:
        lines = [f"- `{v.name}`: {self._comments.get(f'{enum.full_name}.{v.name}', '')}" for v in enum.values if v.number]
        return "\n\n" + "\n".join(lines) if lines else ""


def component(full_name: str) -> str:
    """The name of a component: a message's name without our prefix."""
    return full_name.removeprefix(_OURS)


def _together(descriptor: Descriptor) -> Json:
    """What fields must satisfy together, as far as JSON schema can say it: fields of the message itself."""
    rule = descriptor.GetOptions().Extensions[policy_pb2.message]
    apart = [[f.name for f in oneof.fields] for oneof in descriptor.oneofs if len(oneof.fields) > 1]
    apart += [list(group.fields) for group in rule.mutually_exclusive]
    every: list[Json] = [
        {"not": {"required": [_json(descriptor, a), _json(descriptor, b)]}}
        for group in apart
        if _own(descriptor, group)
        for a, b in combinations(group, 2)
    ]
    every += [
        {"anyOf": [{"required": [_json(descriptor, name)]} for name in group.fields]}
        for group in rule.at_least_one
        if _own(descriptor, group.fields)
    ]
    return {"allOf": every} if every else {}


def _own(descriptor: Descriptor, names: Any) -> bool:
    return all(name in descriptor.fields_by_name for name in names)


def _json(descriptor: Descriptor, name: str) -> str:
    return str(descriptor.fields_by_name[name].json_name)
