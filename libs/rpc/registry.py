"""Joins a service's descriptor with who answers it, and refuses what is not complete before any port opens."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from kubegems.policy.v1 import policy_pb2
from libs.rpc import deprecation, fields, uploads, validation
from libs.rpc.call import Method

_Rule = policy_pb2.Rule
_WRITES = (_Rule.WRITE, _Rule.SENSITIVE)


class Refused(Exception):
    """The service may not start; one line per mistake."""


def methods(service: ServiceDescriptor, servicer: object, *, known_permissions: Collection[str] | None = None) -> list[Method]:
    """The methods of a service, answered by `servicer`'s methods of the same names.

    Args:
        service: from `<file>_pb2.DESCRIPTOR.services_by_name[...]`.
        servicer: holds `async def Rpc(self, request, call)`, or an async generator for a server stream.
        known_permissions: all permissions that some role may hold; without it permissions are not checked.

    Raises:
        Refused: names every missing RPC, incomplete rule, absent scope field, unknown permission and bad field rule.
    """
    problems = [p for d in service.methods for p in _problems(d, getattr(servicer, d.name, None), known_permissions)]
    if problems:
        raise Refused("\n".join(problems))
    return [bind(d, getattr(servicer, d.name)) for d in service.methods]


def bind(descriptor: MethodDescriptor, handler: Any, *, forwarded: bool = False) -> Method:
    """One method without the checks, which `problems` makes."""
    request_class, response_class = GetMessageClass(descriptor.input_type), GetMessageClass(descriptor.output_type)
    return Method(descriptor, rule_of(descriptor), request_class, response_class, handler, forwarded)


def rule_of(descriptor: MethodDescriptor) -> policy_pb2.Rule:
    """The rule of an RPC; an empty one when it has none."""
    found: policy_pb2.Rule = descriptor.GetOptions().Extensions[policy_pb2.rule]
    return found


def _problems(descriptor: MethodDescriptor, handler: Any, known: Collection[str] | None) -> Iterator[str]:
    for problem in (*_handler(descriptor, handler), *rule_problems(descriptor, known)):
        yield f"{descriptor.full_name}: {problem}"


def _handler(descriptor: MethodDescriptor, handler: Any) -> Iterator[str]:
    if handler is None:
        yield "nothing answers it"
    elif descriptor.server_streaming and inspect.iscoroutinefunction(handler):
        yield "a server stream must be an async generator"
    elif not descriptor.server_streaming and not inspect.iscoroutinefunction(handler):
        yield "must be an async function"


def rule_problems(descriptor: MethodDescriptor, known: Collection[str] | None) -> Iterator[str]:
    """What is wrong with an RPC's rule, scope fields and field rules."""
    if not descriptor.GetOptions().HasExtension(policy_pb2.rule):
        yield "has no rule"
        return
    rule = rule_of(descriptor)
    for name in ("auth", "audit", "rate"):
        if not getattr(rule, name):
            yield f"its rule has no {name}"
    yield from _permission(rule, known)
    for path in rule.scope:
        try:
            fields.getter(descriptor.input_type, path)
        except ValueError as error:
            yield f"scope: {error}"
    if descriptor.client_streaming:
        yield from _upload(descriptor)
    if rule.internal and descriptor.GetOptions().HasExtension(annotations_pb2.http):
        yield "is internal and has an HTTP binding"
    if descriptor.server_streaming and rule.audit in _WRITES and not rule.external:
        yield "a stream that changes something must be external, so that its intent is recorded"
    yield from deprecation.problems(descriptor, rule)
    yield from validation.problems(descriptor.input_type)


def _upload(descriptor: MethodDescriptor) -> Iterator[str]:
    """The one kind of client stream that is served: an upload."""
    if descriptor.server_streaming:
        yield "streams in both directions are not served"
    if uploads.body_of(descriptor.input_type) is None:
        yield "a client stream must carry one google.api.HttpBody; other client streams are not served"


def _permission(rule: policy_pb2.Rule, known: Collection[str] | None) -> Iterator[str]:
    user = rule.auth == _Rule.USER
    if user and not rule.permission:
        yield "its rule has no permission"
    if not user and (rule.permission or rule.scope or rule.filtered):
        yield "permission, scope and filtered are for USER only"
    if user and rule.internal:
        yield "an internal method cannot be for USER"
    if user and known is not None and rule.permission and rule.permission not in known:
        yield f"no role knows the permission {rule.permission!r}"
