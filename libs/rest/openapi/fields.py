"""One field as a JSON schema: its type in proto3 JSON, and for requests its rule as keywords."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from kubegems.policy.v1 import policy_pb2
from libs.rpc import fields, validation

Json = dict[str, Any]
_F = FieldDescriptor
_MAX_KEY = 256
_INTEGERS: dict[int, tuple[str, int, int]] = {
    _F.CPPTYPE_INT32: ("int32", -(2**31), 2**31 - 1),
    _F.CPPTYPE_UINT32: ("uint32", 0, 2**32 - 1),
    _F.CPPTYPE_INT64: ("int64", -(2**63), 2**63 - 1),
    _F.CPPTYPE_UINT64: ("uint64", 0, 2**64 - 1),
}
_SIMPLE: dict[int, Json] = {
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _F.TYPE_BOOL: {"type": "boolean"},
}
_WIDE = ("int64", "uint64")
_FLOATS = {_F.CPPTYPE_FLOAT: "float", _F.CPPTYPE_DOUBLE: "double"}
_NO_NUMBERS = ["NaN", "Infinity", "-Infinity"]
KNOWN: dict[str, Json] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$"},
    "google.protobuf.FieldMask": {"type": "string", "pattern": r"^([A-Za-z0-9_.]+(,[A-Za-z0-9_.]+)*)?$"},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}, "additionalProperties": True},
    "google.protobuf.Empty": {"type": "object"},
    "google.api.HttpBody": {},
}


def is_map(field: FieldDescriptor) -> bool:
    """Whether it is a map."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def known(descriptor: Descriptor) -> Json | None:
    """The schema of a type that has a JSON form of its own."""
    if descriptor.file.name == "google/protobuf/wrappers.proto":
        return plain(descriptor.fields_by_name["value"])
    found = KNOWN.get(descriptor.full_name)
    return dict(found) if found is not None else None


def plain(field: FieldDescriptor, *, text: bool = False, sent: bool = False) -> Json:
    """One value of a scalar field, without its rule.

    Args:
        field: no message.
        text: in a query or a path, where a number is a number however wide it is.
        sent: in a request, which may give a wide number as a number too.
    """
    if field.enum_type is not None:
        return enum(field.enum_type)
    if field.type in _SIMPLE:
        return dict(_SIMPLE[field.type])
    if field.cpp_type in _FLOATS:
        return {"anyOf": [{"type": "number", "format": _FLOATS[field.cpp_type]}, {"type": "string", "enum": _NO_NUMBERS}]}
    name, least, most = _INTEGERS[field.cpp_type]
    number = {"type": "integer", "format": name, "minimum": least, "maximum": most}
    if name not in _WIDE or text:
        return number
    digits = {"type": "string", "format": name, "pattern": "^-?[0-9]{1,20}$" if least else "^[0-9]{1,20}$"}
    return {"anyOf": [digits, number]} if sent else digits


def enum(of: EnumDescriptor) -> Json:
    """The names of an enum's values."""
    return {"type": "string", "enum": [value.name for value in of.values]}


def bound(field: FieldDescriptor, schema: Json) -> Json:
    """A field's schema with its rule as keywords; of a list or map the rule is also about what is in it."""
    rule = fields.rule(field)
    if is_map(field):
        return schema | _map(rule, schema)
    if field.is_repeated:
        items = schema["items"]
        if field.message_type is None:
            items = items | _value(field, policy_pb2.FieldRule(pattern=rule.pattern, quantity=rule.quantity, secret=rule.secret))
        return schema | {"items": items} | _count("Items", rule)
    if field.message_type is None:
        return schema | _value(field, rule)
    return schema


def _map(rule: policy_pb2.FieldRule, schema: Json) -> Json:
    names: Json = {"maxLength": _MAX_KEY}
    if rule.pattern:
        names["pattern"] = anchored(rule.pattern)
    values = schema["additionalProperties"]
    if rule.quantity:
        values = values | _quantity()
    return {"propertyNames": names, "additionalProperties": values} | _count("Properties", rule)


def _count(what: str, rule: policy_pb2.FieldRule) -> Json:
    least = max(rule.min_length, 1 if rule.required else 0)
    return ({f"min{what}": least} if least else {}) | {f"max{what}": rule.max_length or validation.DEFAULT_MAX_LENGTH}


def _value(field: FieldDescriptor, rule: policy_pb2.FieldRule) -> Json:
    if field.type == _F.TYPE_STRING:
        return _text(rule)
    if field.type == _F.TYPE_BYTES:
        most = rule.max_length or validation.DEFAULT_MAX_LENGTH
        return {"maxLength": (most + 2) // 3 * 4} | ({"minLength": 1} if rule.required else {})
    if field.enum_type is not None:
        return {"enum": [value.name for value in field.enum_type.values if value.number]} if rule.required else {}
    found: Json = {}
    if rule.HasField("minimum"):
        found["minimum"] = rule.minimum
    if rule.HasField("maximum"):
        found["maximum"] = rule.maximum
    return found


def _text(rule: policy_pb2.FieldRule) -> Json:
    found: Json = {}
    if least := max(rule.min_length, 1 if rule.required else 0):
        found["minLength"] = least
    found["maxLength"] = rule.max_length or validation.DEFAULT_MAX_LENGTH
    if rule.pattern:
        found["pattern"] = anchored(rule.pattern)
    if rule.quantity:
        found |= _quantity()
    if rule.secret:
        found |= {"format": "password", "writeOnly": True}
    return found


def _quantity() -> Json:
    return {"pattern": anchored(validation.QUANTITY.pattern), "x-kubegems-format": "quantity"}


def anchored(pattern: str) -> str:
    """An expression that must match whole, as JSON schema has it."""
    return f"^(?:{pattern})$" if "|" in pattern else f"^{pattern}$"
