"""Requests as plain data, with secrets left out and sizes bounded."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from libs.rpc.fields import rule

REDACTED = "[redacted]"
MAX_TEXT = 1024
MAX_ITEMS = 100
MAX_BYTES = 16 * 1024
_WORDS = ("password", "secret", "private_key", "access_token", "refresh_token")
_INT64 = (
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
)


def redacted(message: Message | None) -> dict[str, Any]:
    """What audit may keep of a request: proto3 JSON, secrets as `[redacted]`, bytes as their length, long values cut."""
    if message is None:
        return {}
    found = _message(message)
    size = len(orjson.dumps(found))
    return found if size <= MAX_BYTES else {"truncated": f"{size} bytes"}


def holds_secrets(message: Message) -> bool:
    """Whether a field marked `secret` is set anywhere in a message."""
    secrets = _secrets(message.DESCRIPTOR)
    for field, value in message.ListFields():
        if field.name in secrets:
            return True
        if field.message_type is None:
            continue
        if _is_map(field):
            values = value.values() if field.message_type.fields_by_name["value"].message_type else ()
        else:
            values = value if field.is_repeated else (value,)
        if any(holds_secrets(v) for v in values):
            return True
    return False


def clean(text: str) -> str:
    """Text that PostgreSQL takes: no NUL, no lone surrogates, at most 1024 characters."""
    return text[:MAX_TEXT].replace("\0", "\ufffd").encode("utf-8", "replace").decode() + ("…" if len(text) > MAX_TEXT else "")


def cleaned(value: Any) -> Any:
    """Plain data that PostgreSQL takes: every text in it cleaned."""
    match value:
        case str():
            return clean(value)
        case dict():
            return {clean(key): cleaned(inner) for key, inner in value.items()}
        case list() | tuple():
            return [cleaned(inner) for inner in value]
        case _:
            return value


@lru_cache(maxsize=4096)
def _secrets(descriptor: Descriptor) -> frozenset[str]:
    return frozenset(field.name for field in descriptor.fields if rule(field).secret or _sounds_secret(field))


def _sounds_secret(field: FieldDescriptor) -> bool:
    # a last net under a forgotten option: better an unreadable record than a readable password
    return field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES) and any(word in field.name for word in _WORDS)


def _message(message: Message) -> dict[str, Any]:
    secrets = _secrets(message.DESCRIPTOR)
    return {field.json_name: REDACTED if field.name in secrets else _field(field, value) for field, value in message.ListFields()}


def _field(field: FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        assert field.message_type is not None
        inner = field.message_type.fields_by_name["value"]
        return {clean(str(key)): _value(inner, value[key]) for key in list(value)[:MAX_ITEMS]}
    if field.is_repeated:
        return [_value(field, item) for item in value[:MAX_ITEMS]]
    return _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.file.package == "google.protobuf":
            return cleaned(MessageToDict(value))
        return _message(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known else value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return str(value) if field.cpp_type in _INT64 else value


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
