"""Field rules of the protos, compiled per message type and enforced before the handler, all violations at once.

Fields marked `output_only` are cleared: they are the server's to set. Messages outside of our packages are not looked into,
but for NUL characters: no text holds one, since PostgreSQL keeps none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2
from libs.faults import Invalid, Violation
from libs.rpc import fields, together

Check = Callable[[Any, str, list[Violation]], None]
DEFAULT_MAX_LENGTH = 4096
_SHOWN = 64
_NUL = "\0"
_HOLDS_NUL = "holds a NUL character, which no text may"
QUANTITY = re.compile(r"\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
_STRING, _BYTES, _ENUM, _BOOL = (
    FieldDescriptor.TYPE_STRING,
    FieldDescriptor.TYPE_BYTES,
    FieldDescriptor.TYPE_ENUM,
    FieldDescriptor.TYPE_BOOL,
)
_compiled: dict[str, list[Check]] = {}


def validate(message: Message) -> None:
    """Raises Invalid with every violation, or returns."""
    run(checks(cast("Descriptor", message.DESCRIPTOR)), message)


def run(compiled: list[Check], message: Message) -> None:
    """Runs compiled checks; raises Invalid with every violation."""
    found: list[Violation] = []
    for check in compiled:
        check(message, "", found)
    if found:
        raise Invalid.fields(found)


def checks(descriptor: Descriptor) -> list[Check]:
    """The checks of a message type, compiled at the first ask."""
    known = _compiled.get(descriptor.full_name)
    if known is None:
        known = _compiled[descriptor.full_name] = []  # in place before its fields, since types may hold themselves
        known += [check for field in descriptor.fields for check in _field(field)]
        known += together.checks(descriptor)
    return known


def problems(descriptor: Descriptor, seen: set[str] | None = None) -> Iterator[str]:
    """What is wrong with the field rules of a request and all below it."""
    seen = set() if seen is None else seen
    if descriptor.full_name in seen or not _ours(descriptor):
        return
    seen.add(descriptor.full_name)
    yield from together.problems(descriptor)
    for field in descriptor.fields:
        rule = fields.rule(field)
        if rule.required and field.type == _BOOL and not field.has_presence:
            yield f"{field.full_name}: a bool cannot be required"
        if rule.quantity and field.type != _STRING and not _is_map(field):
            yield f"{field.full_name}: only a string or a map of strings can be a quantity"
        try:
            re.compile(rule.pattern)
        except re.error as error:
            yield f"{field.full_name}: pattern: {error}"
        if field.message_type is not None:
            yield from problems(field.message_type, seen)


def _field(field: FieldDescriptor) -> Iterator[Check]:
    rule = fields.rule(field)
    if rule.output_only:
        yield _clear(field.name)
        return
    if rule.required:
        yield _required(field)
    if _is_map(field):
        yield from _map(field, rule)
    elif field.is_repeated:
        yield from _list(field, rule)
    elif field.message_type is not None:
        yield _inner(field) if _ours(field.message_type) else _foreign(field.name)
    elif value := _value(field, rule):
        yield _single(field.name, value)


def _clear(name: str) -> Check:
    def check(message: Any, _prefix: str, _found: list[Violation]) -> None:
        message.ClearField(name)

    return check


def _required(field: FieldDescriptor) -> Check:
    name, presence = field.name, field.has_presence

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        if not (message.HasField(name) if presence else getattr(message, name)):
            found.append(Violation(prefix + name, "is required"))

    return check


def _single(name: str, value: Check) -> Check:
    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        given = getattr(message, name)
        if given:
            value(given, prefix + name, found)

    return check


def _inner(field: FieldDescriptor) -> Check:
    name, inner = field.name, checks(_type(field))

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        if message.HasField(name):
            value, prefix = getattr(message, name), f"{prefix}{name}."
            for one in inner:
                one(value, prefix, found)

    return check


def _foreign(name: str) -> Check:
    """Of a message that is not ours its texts alone are looked at."""

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        if message.HasField(name) and _nul_in(getattr(message, name)):
            found.append(Violation(prefix + name, _HOLDS_NUL))

    return check


def _nul_in(message: Any) -> bool:
    for field, value in message.ListFields():
        values = [*value, *value.values()] if _is_map(field) else value if field.is_repeated else [value]
        if any(_nul_in(v) if isinstance(v, Message) else isinstance(v, str) and _NUL in v for v in values):
            return True
    return False


def _count(name: str, rule: policy_pb2.FieldRule) -> Check:
    least, most = rule.min_length, rule.max_length or DEFAULT_MAX_LENGTH

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        count = len(getattr(message, name))
        if count > most or 0 < count < least:
            found.append(Violation(prefix + name, f"has {count} items; {_range(least, most)} are allowed"))

    return check


def _list(field: FieldDescriptor, rule: policy_pb2.FieldRule) -> Iterator[Check]:
    name = field.name
    yield _count(name, rule)
    inner = checks(field.message_type) if field.message_type is not None and _ours(field.message_type) else None
    value = None if field.message_type is not None else _value(field, rule, items=True)
    foreign = field.message_type is not None and inner is None

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        for index, item in enumerate(getattr(message, name)):
            path = f"{prefix}{name}[{index}]"
            if foreign and _nul_in(item):
                found.append(Violation(path, _HOLDS_NUL))
            if value is not None:
                value(item, path, found)
            for one in inner or ():
                one(item, path + ".", found)

    if inner is not None or value is not None or foreign:  # a type that holds itself has no checks yet
        yield check


def _map(field: FieldDescriptor, rule: policy_pb2.FieldRule) -> Iterator[Check]:
    name = field.name
    yield _count(name, rule)
    key = _text(policy_pb2.FieldRule(pattern=rule.pattern, max_length=256))
    of = _type(field).fields_by_name["value"]
    inner = checks(of.message_type) if of.message_type is not None and _ours(of.message_type) else None
    value = None if of.message_type is not None else _value(of, policy_pb2.FieldRule(quantity=rule.quantity, secret=rule.secret))
    foreign = of.message_type is not None and inner is None

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        for k, item in getattr(message, name).items():
            path = f"{prefix}{name}[{str(k)[:_SHOWN]}]".replace(_NUL, "\ufffd")
            if isinstance(k, str):
                key(k, path, found)
            if foreign and _nul_in(item):
                found.append(Violation(path, _HOLDS_NUL))
            if value is not None:
                value(item, path, found)
            for one in inner or ():
                one(item, path + ".", found)

    yield check


def _value(field: FieldDescriptor, rule: policy_pb2.FieldRule, *, items: bool = False) -> Check | None:
    if field.type in (_STRING, _BYTES):
        return _text(policy_pb2.FieldRule(pattern=rule.pattern, quantity=rule.quantity, secret=rule.secret) if items else rule)
    if field.type == _ENUM:
        return _enum(field)
    if rule.HasField("minimum") or rule.HasField("maximum"):
        return _number(rule)
    return None


def _text(rule: policy_pb2.FieldRule) -> Check:
    least, most, secret, quantity = rule.min_length, rule.max_length or DEFAULT_MAX_LENGTH, rule.secret, rule.quantity
    pattern = re.compile(rule.pattern) if rule.pattern else None

    def check(value: Any, path: str, found: list[Violation]) -> None:
        if isinstance(value, str) and _NUL in value:
            found.append(Violation(path, _HOLDS_NUL))
        elif not least <= len(value) <= most:
            found.append(Violation(path, f"has {len(value)} characters; {_range(least, most)} are allowed"))
        elif pattern is not None and not pattern.fullmatch(value):
            found.append(Violation(path, f"{_shown(value, secret=secret)} must match {pattern.pattern}"))
        elif quantity and not QUANTITY.fullmatch(value):
            found.append(
                Violation(path, f"{_shown(value, secret=secret)} must be a Kubernetes quantity that is not negative, such as 500m or 4Gi")
            )

    return check


def _number(rule: policy_pb2.FieldRule) -> Check:
    least = rule.minimum if rule.HasField("minimum") else None
    most = rule.maximum if rule.HasField("maximum") else None

    def check(value: Any, path: str, found: list[Violation]) -> None:
        if least is not None and value < least:
            found.append(Violation(path, f"{value} must be at least {least}"))
        if most is not None and value > most:
            found.append(Violation(path, f"{value} must be at most {most}"))

    return check


def _enum(field: FieldDescriptor) -> Check:
    assert field.enum_type is not None
    known = field.enum_type.values_by_number

    def check(value: Any, path: str, found: list[Violation]) -> None:
        if value not in known:
            found.append(Violation(path, f"{value} is none of {', '.join(v.name for v in known.values())}"))

    return check


def _range(least: int, most: int) -> str:
    return f"{least} to {most}" if least else f"at most {most}"


def _shown(value: Any, *, secret: bool) -> str:
    return "the value" if secret else repr(value[:_SHOWN] + "…" if len(value) > _SHOWN else value)


def _type(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None
    return field.message_type


def _ours(descriptor: Descriptor) -> bool:
    return bool(descriptor.file.package.startswith("kubegems."))


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
