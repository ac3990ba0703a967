"""Rules over several fields of a message (`MessageRule`): checked after each field alone, told with all other violations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from kubegems.policy.v1 import policy_pb2
from libs.faults import Violation

Check = Callable[[Any, str, list[Violation]], None]
Look = Callable[[Any], Any]  # the value at a path of a message; None when it is not given


def rule(descriptor: Descriptor) -> policy_pb2.MessageRule:
    """The rule of a message type; an empty one when it has none."""
    found: policy_pb2.MessageRule = descriptor.GetOptions().Extensions[policy_pb2.message]
    return found


def checks(descriptor: Descriptor) -> Iterator[Check]:
    """The checks of a message type's rule."""
    found = rule(descriptor)
    for names in found.at_least_one:
        yield _at_least_one(list(names.fields), _looks(descriptor, names.fields))
    for names in found.mutually_exclusive:
        yield _exclusive(list(names.fields), _looks(descriptor, names.fields))
    for names in found.different:
        yield _different(list(names.fields), _looks(descriptor, names.fields))


def problems(descriptor: Descriptor) -> Iterator[str]:
    """What is wrong with a message type's rule."""
    found = rule(descriptor)
    for least, names in [*((1, n) for n in found.at_least_one), *((2, n) for n in (*found.mutually_exclusive, *found.different))]:
        if len(names.fields) < least:
            yield f"{descriptor.full_name}: a rule over {len(names.fields)} fields says nothing"
        for path in names.fields:
            try:
                _look(descriptor, path)
            except ValueError as error:
                yield str(error)


def _looks(descriptor: Descriptor, paths: Iterable[str]) -> list[Look]:
    return [_look(descriptor, path) for path in paths]


def _look(descriptor: Descriptor, path: str) -> Look:
    *above, last = path.split(".")
    of: Descriptor = descriptor
    for name in above:
        field = of.fields_by_name.get(name)
        if field is None or field.message_type is None or field.is_repeated:
            raise ValueError(f"{descriptor.full_name}: its rule names {path!r}, and {name!r} is no message")
        of = field.message_type
    target = of.fields_by_name.get(last)
    if target is None:
        raise ValueError(f"{descriptor.full_name}: its rule names {path!r}, which is not there")
    return _reader(above, target)


def _reader(above: list[str], field: FieldDescriptor) -> Look:
    name, presence = field.name, field.has_presence

    def look(message: Any) -> Any:
        for step in above:
            message = getattr(message, step)
        if presence and not message.HasField(name):
            return None
        value = getattr(message, name)
        return value if presence or value else None

    return look


def _at_least_one(paths: list[str], looks: list[Look]) -> Check:
    said = "is required" if len(paths) == 1 else f"one of {', '.join(paths)} is required"

    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        if all(look(message) is None for look in looks):
            found.append(Violation(prefix + paths[0], said))

    return check


def _exclusive(paths: list[str], looks: list[Look]) -> Check:
    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        given = [path for path, look in zip(paths, looks, strict=True) if look(message) is not None]
        found += [Violation(prefix + path, f"cannot be given together with {given[0]}") for path in given[1:]]

    return check


def _different(paths: list[str], looks: list[Look]) -> Check:
    def check(message: Any, prefix: str, found: list[Violation]) -> None:
        given = [(path, value) for path, look in zip(paths, looks, strict=True) if (value := look(message)) is not None]
        found += [Violation(f"{prefix}{b}", f"must differ from {a}") for (a, one), (b, other) in combinations(given, 2) if one == other]

    return check
