"""Comments of the protos as JSON: full name of a message, field, enum, value, service or RPC → what stands above it.

`make gen` runs it on a descriptor set with source info; libs/rest reads what it makes for the API's document.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

Path_ = tuple[int, ...]
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6  # field numbers in FileDescriptorProto
_FIELD, _NESTED, _NESTED_ENUM = 2, 3, 4  # in DescriptorProto
_VALUE, _RPC = 2, 2  # in EnumDescriptorProto and ServiceDescriptorProto
_OURS = "kubegems/"


def comments(files: FileDescriptorSet) -> dict[str, str]:
    """All comments of our own files, by full name, sorted."""
    found: dict[str, str] = {}
    for file in files.file:
        if file.name.startswith(_OURS):
            said = {tuple(place.path): _text(place.leading_comments) for place in file.source_code_info.location if place.leading_comments}
            found |= {name: said[path] for name, path in _names(file) if path in said}
    return dict(sorted(found.items()))


def _text(comment: str) -> str:
    """One line: line breaks of the source mean nothing."""
    return " ".join(comment.split())


def _names(file: FileDescriptorProto) -> Iterator[tuple[str, Path_]]:
    yield from _messages(file.message_type, file.package, (_MESSAGE,))
    yield from _enums(file.enum_type, file.package, (_ENUM,))
    for index, service in enumerate(file.service):
        yield from _service(service, file.package, (_SERVICE, index))


def _messages(messages: Iterable[DescriptorProto], above: str, path: Path_) -> Iterator[tuple[str, Path_]]:
    for index, message in enumerate(messages):
        name, here = f"{above}.{message.name}", (*path, index)
        yield name, here
        yield from ((f"{name}.{field.name}", (*here, _FIELD, at)) for at, field in enumerate(message.field))
        yield from _messages(message.nested_type, name, (*here, _NESTED))
        yield from _enums(message.enum_type, name, (*here, _NESTED_ENUM))


def _enums(enums: Iterable[EnumDescriptorProto], above: str, path: Path_) -> Iterator[tuple[str, Path_]]:
    for index, enum in enumerate(enums):
        name, here = f"{above}.{enum.name}", (*path, index)
        yield name, here
        yield from ((f"{name}.{value.name}", (*here, _VALUE, at)) for at, value in enumerate(enum.value))


def _service(service: ServiceDescriptorProto, above: str, path: Path_) -> Iterator[tuple[str, Path_]]:
    name = f"{above}.{service.name}"
    yield name, path
    yield from ((f"{name}.{rpc.name}", (*path, _RPC, at)) for at, rpc in enumerate(service.method))


if __name__ == "__main__":
    made = comments(FileDescriptorSet.FromString(sys.stdin.buffer.read()))
    print(json.dumps(made, indent=0, ensure_ascii=False))
