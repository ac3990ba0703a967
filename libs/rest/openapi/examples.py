"""Examples of requests and answers, from what the comments say (`such as `x``) and from the types; nothing is invented twice."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from libs.rest.openapi import comments
from libs.rest.openapi import fields as keywords
from libs.rest.openapi.fields import is_map
from libs.rpc import fields

_F = FieldDescriptor
_WELL_KNOWN: dict[str, Any] = {"google.protobuf.Timestamp": "2026-01-01T00:00:00Z", "google.protobuf.Duration": "90s"}
_NONE_NEEDED = frozenset(
    {"request_id", "etag", "page_token", "update_mask", "filter", "order_by"}
)  # right only as the server gives them, or rarely wanted
_SECRET = "not-a-real-secret"  # noqa: S105 -- that is what it says
_DEEP = 3


class Examples:
    """Makes examples.

    Args:
        said: comments by full name.
        placeholders: what stands for `{tenant}` and its like in names, and for `tenant_id`.
    """

    def __init__(self, said: comments.Comments, placeholders: Mapping[str, str]) -> None:
        self._said, self._placeholders = said, placeholders

    def message(self, descriptor: Descriptor, *, sent: bool, elsewhere: frozenset[str] = frozenset(), depth: int = 0) -> Any:
        """A message as JSON, with the fields of which there is an example; `elsewhere` are fields that the path gives."""
        found: dict[str, Any] = {}
        for field in descriptor.fields:
            if field.name in elsewhere or (sent and self._needless(field, depth)) or (not sent and fields.rule(field).secret):
                continue
            value = self.field(field, sent=sent, depth=depth)
            if value is not None:
                found[field.json_name] = value
        return found

    def _needless(self, field: FieldDescriptor, depth: int) -> bool:
        rule = fields.rule(field)
        return rule.output_only or (not rule.required and (field.name in _NONE_NEEDED or (depth > 0 and field.name == "name")))

    def field(self, field: FieldDescriptor, *, sent: bool, depth: int = 0) -> Any:
        """A field's value; None for none."""
        if is_map(field):
            return self._map(field)
        value = self._one(field, sent=sent, depth=depth)
        return [value] if field.is_repeated and value is not None else value

    def _map(self, field: FieldDescriptor) -> Any:
        assert field.message_type is not None
        key = comments.example(self._said.get(field.full_name, ""), self._placeholders)
        if key is None and not fields.rule(field).required:
            return None
        value = "1" if fields.rule(field).quantity else "value"
        return {key or "key": value} if field.message_type.fields_by_name["value"].type == _F.TYPE_STRING else None

    def _one(self, field: FieldDescriptor, *, sent: bool, depth: int) -> Any:
        of = field.message_type
        if of is not None:
            if keywords.known(of) is not None:
                return _WELL_KNOWN.get(of.full_name) if not sent or fields.rule(field).required else None
            inner = self.message(of, sent=sent, depth=depth + 1) if depth < _DEEP else None
            return inner if inner or fields.rule(field).required else None
        if field.enum_type is not None:
            return next((v.name for v in field.enum_type.values if v.number), None)
        if field.type == _F.TYPE_STRING:
            return self._text(field)
        if field.type == _F.TYPE_BOOL:
            return None
        return self._number(field) if field.type != _F.TYPE_BYTES else None

    def _number(self, field: FieldDescriptor) -> Any:
        rule = fields.rule(field)
        if not rule.required and not rule.output_only:
            return None
        number = max(1, rule.minimum)
        return str(number) if field.cpp_type in (_F.CPPTYPE_INT64, _F.CPPTYPE_UINT64) else number

    def _text(self, field: FieldDescriptor) -> str | None:
        rule = fields.rule(field)
        if rule.secret:
            return _SECRET
        tried = [comments.example(self._said.get(field.full_name, ""), self._placeholders)]
        if field.name.endswith("_id"):
            tried.append(self._placeholders.get(field.name.removesuffix("_id"), field.name.removesuffix("_id")))
        if rule.required:
            tried.append(self._placeholders.get(field.name, field.name.replace("_", "-")))
        return next((text for text in tried if text and _fits(text, rule)), None)


def _fits(text: str, rule: Any) -> bool:
    if rule.quantity or not rule.min_length <= len(text) <= (rule.max_length or len(text)):
        return False
    return not rule.pattern or re.fullmatch(rule.pattern, text) is not None
