"""Reading requests by dotted path: scope fields, resource names, `users/me`. Compiled once per method."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2
from libs.rpc.call import Call

Getter = Callable[[Message], list[str]]
_ME = "users/me"
_CURRENT = "/sessions/current"
_NAMES = ("name", "parent")


def rule(field: FieldDescriptor) -> policy_pb2.FieldRule:
    """The rule of a field; an empty one when it has none."""
    found: policy_pb2.FieldRule = field.GetOptions().Extensions[policy_pb2.field]
    return found


def getter(descriptor: Descriptor, path: str) -> Getter:
    """Reads the strings at a dotted path, in every item of lists on the way; ValueError when there is no such string field."""
    names = path.split(".")
    above: list[tuple[str, bool]] = []
    for name in names[:-1]:
        field = descriptor.fields_by_name.get(name)
        if field is None or field.message_type is None or field.message_type.GetOptions().map_entry:
            raise ValueError(f"{descriptor.full_name} has no message field {name!r} on the way to {path!r}")
        above.append((name, field.is_repeated))
        descriptor = field.message_type
    last = descriptor.fields_by_name.get(names[-1])
    if last is None or last.type != FieldDescriptor.TYPE_STRING:
        raise ValueError(f"{descriptor.full_name} has no string field {names[-1]!r} ({path!r})")
    if any(repeated for _, repeated in above):
        return _reader_of_lists(above, last)
    return _reader([name for name, _ in above], last)


def _reader(above: list[str], field: FieldDescriptor) -> Getter:
    last, repeated = field.name, field.is_repeated

    def read(message: Message) -> list[str]:
        for name in above:
            message = getattr(message, name)
        value = getattr(message, last)
        if repeated:
            return list(value)
        return [value] if value else []

    return read


def _reader_of_lists(above: list[tuple[str, bool]], field: FieldDescriptor) -> Getter:
    inner = _reader([], field)

    def read(message: Message) -> list[str]:
        found = [message]
        for name, repeated in above:
            found = [item for one in found for item in (getattr(one, name) if repeated else (getattr(one, name),))]
        return [value for one in found for value in inner(one)]

    return read


def resource_paths(descriptor: Descriptor) -> Iterator[str]:
    """Paths at which a request names resources: `name`, `parent`, and the `name` of each resource in it."""
    for field in descriptor.fields:
        if field.name in _NAMES and field.type == FieldDescriptor.TYPE_STRING:
            yield field.name
        elif field.message_type is not None and not field.is_repeated and _ours(field.message_type):
            inner = field.message_type.fields_by_name.get("name")
            if inner is not None and inner.type == FieldDescriptor.TYPE_STRING:
                yield f"{field.name}.name"


def replace_me(message: Message, call: Call) -> None:
    """Puts the caller's own name for `users/me`, and its session for `sessions/current`, in every string that is no secret."""
    if b"users/" not in message.SerializeToString():
        return
    _replace(message, f"users/{call.caller.id}", call.caller.session)


def _replace(message: Message, own: str, session: str) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING and not rule(field).secret:
            if not field.is_repeated:
                setattr(message, field.name, _own(value, own, session))
                continue
            value[:] = [_own(v, own, session) for v in value]
        elif field.message_type is not None and _ours(field.message_type):
            for item in value if field.is_repeated else (value,):
                _replace(item, own, session)


def _own(value: str, own: str, session: str) -> str:
    if value == _ME or value.startswith(_ME + "/"):
        value = own + value[len(_ME) :]
    if session and value == own + _CURRENT:
        value = f"{own}/sessions/{session}"
    return value


def _ours(descriptor: Descriptor) -> bool:
    return descriptor.file.package.startswith("kubegems.") and not descriptor.GetOptions().map_entry


def tenant_of(resources: list[str]) -> str:
    """`tenants/{tenant}` that resource names belong to; empty for none."""
    for name in resources:
        if name.startswith("tenants/"):
            return "/".join(name.split("/", 2)[:2])
    return ""
