"""One google.api.http binding: how a path, a query and a body become the request of an RPC."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson
from google.api import annotations_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.faults import Invalid, Violation
from libs.rest import decode, query
from libs.rest.encode import field_encoder, json_of, to_json
from libs.rest.scalars import Reader, scalar
from libs.rest.template import Template, parse
from libs.rpc import validation
from libs.rpc.call import Method
from libs.rpc.registry import Refused

HTTP_BODY = "google.api.HttpBody"
_BODYLESS = ("GET", "DELETE", "HEAD", "OPTIONS")
_HTTP_METHOD = re.compile(r"[A-Z]{1,20}|\*")
ANY_METHOD = "*"


@dataclass(frozen=True, slots=True)
class Binding:
    """A method at one HTTP method and path.

    Attributes:
        method: the RPC.
        http_method: `GET`, …, or `*` for all that no other binding of the path takes.
        template: the path.
        body: field that the body fills, `*` for the whole request, empty for no body.
        response_body: field of the reply that is the answer's body; empty for the whole reply.
        raw: whether the body is taken as it is, into a google.api.HttpBody.
        encode: what makes the answer's JSON of a reply.
        readers: of each of the path's variables: the way to its field, the field, and what reads its value.
    """

    method: Method
    http_method: str
    template: Template
    body: str
    response_body: str = ""
    raw: bool = False
    encode: Callable[[Any], bytes] = to_json
    readers: tuple[tuple[list[str], str, Reader], ...] = ()

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
            raise Invalid.fields([*found, *_more(message, found)])
        return message

    def _body(self, message: Message, raw: bytes, content_type: str, found: list[Violation]) -> None:
        if not self.body:
            if raw:
                raise Invalid(f"{self.http_method} takes no body here")
        elif self.raw:
            target: Any = message if self.body == "*" else getattr(message, self.body)
            target.SetInParent()
            target.content_type, target.data = content_type, raw
        elif self.body == "*":
            if raw:
                decode.into(decode.parse(raw), message, "", found)
        else:
            if self.message_body:
                getattr(message, self.body).SetInParent()
            if raw:
                decode.into_field(decode.parse(raw), message, self.body, found)

    @property
    def message_body(self) -> bool:
        """Whether the body fills a field that is a message, whose parts a path may name too."""
        if self.body in ("", "*"):
            return False
        field = cast("Descriptor", self.method.request_class.DESCRIPTOR).fields_by_name[self.body]
        return field.message_type is not None and not field.is_repeated

    def _path(self, message: Message, segments: list[str], found: list[Violation]) -> None:
        for variable, (above, name, read) in zip(self.template.variables, self.readers, strict=True):
            value = "/".join(segments[variable.start : variable.end])
            target: Any = message
            for step in above:
                target = getattr(target, step)
            try:
                wanted = read(value)
            except ValueError as error:
                found.append(Violation(variable.path, f"{value!r} {error}"))
                continue
            given = getattr(target, name)
            if given and given != wanted:
                found.append(Violation(variable.path, f"{given!r} in the body is not {value!r} of the path"))
            setattr(target, name, wanted)


def _more(message: Message, found: list[Violation]) -> Iterator[Violation]:
    """What else is wrong with a request that could not be read whole; nothing of fields whose value is told to be wrong already."""
    try:
        validation.validate(message)
    except Invalid as fault:
        told = [v.field for v in found]
        yield from (v for v in fault.violations if not any(_within(v.field, t) or _within(t, v.field) for t in told))


def _within(path: str, above: str) -> bool:
    return path == above or path.startswith((f"{above}.", f"{above}["))


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
    if verb is None:
        raise ValueError("it has no pattern")
    http_method = rule.custom.kind if verb == "custom" else verb.upper()
    if not _HTTP_METHOD.fullmatch(http_method):
        raise ValueError(f"{http_method!r} is no HTTP method")
    template = parse(rule.custom.path if verb == "custom" else getattr(rule, verb))
    descriptor = cast("Descriptor", method.request_class.DESCRIPTOR)
    readers: list[tuple[list[str], str, Reader]] = []
    for variable in template.variables:
        field = field_at(descriptor, variable.path)
        if field.is_repeated or field.message_type is not None:
            raise ValueError(f"{variable.path} is no single value")
        readers.append((variable.path.split(".")[:-1], field.name, scalar(field, text=True)))
    if rule.body and http_method in _BODYLESS:
        raise ValueError(f"{http_method} has no body")
    raw = _raw(_part(descriptor, rule.body))
    if method.uploads and not raw:
        raise ValueError("the body of an upload must be its google.api.HttpBody")
    response = cast("Descriptor", method.response_class.DESCRIPTOR)
    encode = _encoder(response, rule.response_body)
    return Binding(method, http_method, template, rule.body, rule.response_body, raw, encode, tuple(readers))


def _encoder(descriptor: Descriptor, name: str) -> Callable[[Any], bytes]:
    part = _part(descriptor, name)
    if not name or _raw(part):
        return json_of(descriptor)
    encode = field_encoder(descriptor, name)
    return lambda message: orjson.dumps(encode(message))


def _part(descriptor: Descriptor, name: str) -> Descriptor | FieldDescriptor | None:
    """What a body is about: the whole message, or one field at its top; ValueError when there is none."""
    if name in ("", "*"):
        return descriptor if name else None
    if "." in name:
        raise ValueError(f"body {name} must be a field of the message itself")
    return field_at(descriptor, name)


def _raw(part: Descriptor | FieldDescriptor | None) -> bool:
    if isinstance(part, FieldDescriptor):
        return not part.is_repeated and part.message_type is not None and part.message_type.full_name == HTTP_BODY
    return part is not None and part.full_name == HTTP_BODY


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
