"""One google.api.http binding: how a path, a query and a body become the request of an RPC."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.faults import Invalid, Violation
from libs.rest import decode, query
from libs.rest.scalars import scalar
from libs.rest.template import Template, parse
from libs.rpc.call import Method
from libs.rpc.registry import Refused

HTTP_BODY = "google.api.HttpBody"
_VERBS = ("get", "put", "post", "delete", "patch")
_BODYLESS = ("GET", "DELETE")


@dataclass(frozen=True, slots=True)
class Binding:
    """A method at one HTTP method and path.

    Attributes:
        method: the RPC.
        http_method: `GET`, …
        template: the path.
        body: field that the body fills, `*` for the whole request, empty for no body.
    """

    method: Method
    http_method: str
    template: Template
    body: str

    def request(self, segments: list[str], pairs: list[tuple[str, str]], raw: bytes, content_type: str) -> Message:
        """The request; raises Invalid with every wrong field."""
        message = self.method.request_class()
        found: list[Violation] = []
        self._body(message, raw, content_type, found)
        self._path(message, segments, found)
        if pairs:
            taken = {v.path for v in self.template.variables}
            query.fill(message, pairs, found, taken=taken, body=self.body)
        if found:
            raise Invalid.fields(found)
        return message

    def _body(self, message: Message, raw: bytes, content_type: str, found: list[Violation]) -> None:
        if not self.body:
            if raw:
                raise Invalid(f"{self.http_method} takes no body here")
            return
        target: Any = message if self.body == "*" else getattr(message, self.body)
        target.SetInParent()
        if target.DESCRIPTOR.full_name == HTTP_BODY:
            target.content_type, target.data = content_type, raw
        elif raw:
            decode.into(decode.parse(raw), target, "" if self.body == "*" else self.body, found)

    def _path(self, message: Message, segments: list[str], found: list[Violation]) -> None:
        for variable in self.template.variables:
            value = "/".join(segments[variable.start : variable.end])
            *above, name = variable.path.split(".")
            target: Any = message
            for step in above:
                target = getattr(target, step)
            read = scalar(target.DESCRIPTOR.fields_by_name[name], text=True)
            try:
                wanted = read(value)
            except ValueError as error:
                found.append(Violation(variable.path, f"{value!r} {error}"))
                continue
            given = getattr(target, name)
            if given and given != wanted:
                found.append(Violation(variable.path, f"{given!r} in the body is not {value!r} of the path"))
            setattr(target, name, wanted)


def bindings(method: Method) -> Iterator[Binding]:
    """The bindings of an RPC, none when it has no annotation; raises Refused for one that cannot work."""
    options = method.descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return
    http = options.Extensions[annotations_pb2.http]
    for rule in (http, *http.additional_bindings):
        try:
            yield _checked(method, rule)
        except ValueError as error:
            raise Refused(f"{method.path}: HTTP binding: {error}") from error


def _checked(method: Method, rule: Any) -> Binding:
    verb = rule.WhichOneof("pattern")
    if verb not in _VERBS:
        raise ValueError(f"{verb} is not served")
    template = parse(getattr(rule, verb))
    descriptor = cast("Descriptor", method.request_class.DESCRIPTOR)
    for variable in template.variables:
        field = field_at(descriptor, variable.path)
        if field.is_repeated or field.message_type is not None:
            raise ValueError(f"{variable.path} is no single value")
    if rule.body not in ("", "*"):
        field = field_at(descriptor, rule.body)
        if field.is_repeated or field.message_type is None:
            raise ValueError(f"body {rule.body} must be a message")
    if rule.body and verb.upper() in _BODYLESS:
        raise ValueError(f"{verb} has no body")
    return Binding(method, verb.upper(), template, rule.body)


def field_at(descriptor: Descriptor, path: str) -> FieldDescriptor:
    """The field at a dotted path; ValueError when there is none."""
    field: FieldDescriptor | None = None
    of: Descriptor | None = descriptor
    for name in path.split("."):
        field = of.fields_by_name.get(name) if of is not None else None
        if field is None:
            raise ValueError(f"{descriptor.full_name} has no field {path}")
        of = None if field.is_repeated else field.message_type
    assert field is not None
    return field
