"""The whole document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor

from kubegems.policy.v1 import policy_pb2
from libs.rest.binding import ANY_METHOD, HTTP_BODY, Binding, bindings
from libs.rest.headers import JSON
from libs.rest.openapi import answers, comments, paths, query
from libs.rest.openapi.examples import Examples
from libs.rest.openapi.fields import Json
from libs.rest.openapi.schemas import Schemas
from libs.rpc import sizes
from libs.rpc.call import Method
from libs.rpc.listeners import public

_Rule = policy_pb2.Rule
BEARER = "bearer"
_ANY = ("get", "put", "post", "delete", "patch")
_SPOKEN = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})  # what OpenAPI has a place for


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the document says of itself.

    Attributes:
        title: name of the API.
        version: of the API, such as `v1`.
        description: Markdown for people.
        tokens: where bearer tokens come from.
        server: base URL; `/` is where the document came from.
        placeholders: examples by place, such as `tenant` → `acme`.
    """

    title: str
    version: str
    description: str = ""
    tokens: str = ""
    server: str = "/"
    placeholders: Mapping[str, str] = field(default_factory=dict)


def document(methods: Iterable[Method], about: About, said: comments.Comments | None = None) -> Json:
    """Describes the public methods that have HTTP bindings.

    Args:
        methods: of all services; internal ones are left out.
        about: title and the like.
        said: comments by full name; by default those of the generated code.
    """
    said = comments.load() if said is None else said
    made = _Maker(said, about)
    services: dict[str, ServiceDescriptor] = {}
    operations: dict[str, Json] = {}
    for method in public(methods):
        for number, binding in enumerate(bindings(method), 1):
            services[method.descriptor.containing_service.full_name] = method.descriptor.containing_service
            path, operation = made.operation(binding, number)
            for verb in _verbs(binding):
                operations.setdefault(path, {})[verb] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": about.title, "version": about.version, "description": about.description},
        "servers": [{"url": about.server}],
        "security": [{BEARER: []}],
        "tags": [{"name": s.name, "description": said.get(n, s.name)} for n, s in sorted(services.items())],
        "paths": dict(sorted(operations.items())),
        "components": made.components(),
    }


def _verbs(binding: Binding) -> list[str]:
    if binding.http_method == ANY_METHOD:
        return list(_ANY)
    verb = binding.http_method.lower()
    return [verb] if verb in _SPOKEN else []


class _Maker:
    """Makes operations and keeps the schemas that they use."""

    def __init__(self, said: comments.Comments, about: About) -> None:
        self._said, self._about = said, about
        self._schemas = Schemas(said)
        self._examples = Examples(said, about.placeholders)

    def components(self) -> Json:
        bearer = {"type": "http", "scheme": "bearer", "description": self._about.tokens}
        schemas = {"Error": answers.error_schema()} | dict(sorted(self._schemas.components.items()))
        return {"schemas": schemas, **answers.components(), "securitySchemes": {BEARER: bearer}}

    def operation(self, binding: Binding, number: int) -> tuple[str, Json]:
        """A binding's path and operation; `number` counts a method's bindings from 1."""
        method = binding.method
        descriptor = method.descriptor
        path, parameters = paths.path(binding, self._about.placeholders)
        name = f"{descriptor.containing_service.name}.{descriptor.name}"
        comment = self._said.get(descriptor.full_name, "")
        found: Json = {
            "operationId": name if number == 1 else f"{name}.{number}",
            "tags": [descriptor.containing_service.name],
            "summary": comments.summary(comment) or descriptor.name,
            "description": "\n\n".join(text for text in (comment, _needs(method)) if text),
            "parameters": [*parameters, *self._query(binding), *_headers(binding)],
        }
        if binding.body:
            found["requestBody"] = self._body(binding)
        found["responses"] = answers.answers(binding, self._schemas, self._examples)
        if method.rule.auth != _Rule.USER:
            found["security"] = []
        if descriptor.GetOptions().deprecated:
            found["deprecated"] = True
        return path, found | _extensions(method, binding)

    def _query(self, binding: Binding) -> list[Json]:
        return query.parameters(binding, self._schemas)

    def _body(self, binding: Binding) -> Json:
        if binding.raw:
            return {"required": False, "description": "Bytes, taken as they are.", "content": {"*/*": {}}}
        request: Any = binding.method.descriptor.input_type
        variables = {v.path for v in binding.template.variables}
        if binding.body != "*":
            field_: FieldDescriptor = request.fields_by_name[binding.body]
            if not binding.message_body:
                content: Json = {"schema": self._schemas.field(field_, sent=True)}
                return {"required": True, "content": {JSON: content}}
            request, prefix = field_.message_type, binding.body + "."
            variables = {path.removeprefix(prefix) for path in variables if path.startswith(prefix)}
        elsewhere = frozenset(variables)
        whole = self._schemas.object(request, sent=True, elsewhere=elsewhere)
        schema = whole if elsewhere else self._schemas.message(request, sent=True)
        content = {"schema": schema, "example": self._examples.message(request, sent=True, elsewhere=elsewhere)}
        return {"required": "required" in whole, "content": {JSON: content}}


def _needs(method: Method) -> str:
    rule = method.rule
    if rule.auth != _Rule.USER:
        return "Needs no token."
    if rule.filtered:
        return f"Answers with what lies where the caller holds `{rule.permission}`."
    at = " and ".join(f"`{path}`" for path in rule.scope)
    return f"Needs `{rule.permission}` at {at or 'the platform'}."


def _headers(binding: Binding) -> list[Json]:
    """Request headers that a call takes."""
    request: Any = binding.method.descriptor.input_type
    output = binding.method.descriptor.output_type
    body = request.fields_by_name[binding.body].message_type if binding.message_body else request
    found = []
    if binding.http_method == "GET" and not binding.method.streams and answers.has_etag(output):
        found.append(("If-None-Match", "An ETag; the answer is 304 when it is current."))
    if body is not None and answers.has_etag(body) and binding.http_method != "GET":
        found.append(("If-Match", "An ETag; ABORTED when it is not current. The same as `etag`."))
    if "request_id" in request.fields_by_name:
        found.append(("Idempotency-Key", "Makes a repeated request harmless for 24 h. The same as `requestId`."))
    if binding.method.streams and "resume_token" in request.fields_by_name:
        found.append(("Last-Event-ID", "Goes on after that event. Wins over `resumeToken`."))
    more: dict[str, Json] = {"Idempotency-Key": {"maxLength": 64, "pattern": "^[ -~]*$"}}
    return [{"name": name, "in": "header", "description": said, "schema": {"type": "string", **more.get(name, {})}} for name, said in found]


def _extensions(method: Method, binding: Binding) -> Json:
    """What the method's rule says beyond OpenAPI's own words."""
    rule = method.rule
    found: Json = {"x-kubegems-method": method.path.lstrip("/")}
    if rule.permission:
        found |= {"x-kubegems-permission": rule.permission, "x-kubegems-scope": list(rule.scope)}
    found["x-kubegems-audit"] = _Rule.Audit.Name(rule.audit)
    found["x-kubegems-rate"] = _Rule.Rate.Name(rule.rate)
    if binding.body:
        found["x-kubegems-max-request-bytes"] = sizes.most(method)
    if method.streams:
        found["x-kubegems-stream"] = method.descriptor.output_type.full_name != HTTP_BODY or "raw"
    return found
