"""The whole road of every RPC of the protos, with handlers that only say that they were reached: no servers, no database."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import orjson
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from libs.faults import Fault
from libs.rest.decode import decode
from libs.rest.openapi import comments
from libs.rest.openapi.examples import Examples
from libs.rpc import Call, Caller, Method, Pipeline
from libs.rpc.fields import resource_paths
from services.gateway.edge import docs
from tests.contract.api import methods

_EXAMPLES = Examples(comments.load(), docs.about().placeholders)
# What the contract's comments give no example of, or one that does not go with another field's.
_MORE: dict[str, dict[str, Any]] = {
    "ClusterAccessService/RequestKubernetes": {"method": "GET"},
    "EnrolmentService/Renew": {"proof": b"proof"},
    "UserService/ChangePassword": {"new_password": "another correct horse"},
}


class Reached(Fault):
    """The call got as far as its handler."""

    reason = "REACHED"


async def _unary(_request: Any, _call: Call) -> Any:
    raise Reached("here")


async def _stream(_request: Any, _call: Call) -> AsyncIterator[Any]:
    raise Reached("here")
    yield


def name(method: Method) -> str:
    """`Service/Rpc`."""
    return f"{method.descriptor.containing_service.name}/{method.descriptor.name}"


METHODS = {name(m): dataclasses.replace(m, handler=_stream if m.streams else _unary) for m in methods()}


def request(method: Method, at: str = "") -> Message:
    """A request that passes its checks, about a resource: in its scope fields, or where names stand when it has none."""
    made = method.request_class()
    decode(orjson.dumps(_EXAMPLES.message(method.descriptor.input_type, sent=True) or {}), made)
    for field, value in _MORE.get(name(method), {}).items():
        setattr(made, field, value)
    if at:
        for path in method.rule.scope or list(resource_paths(method.descriptor.input_type))[:1]:
            _put(made, path, at)
    return made


def _put(message: Any, path: str, at: str) -> None:
    *above, last = path.split(".")
    for part in above:
        inner = getattr(message, part)
        message = inner if isinstance(inner, Message) else inner[0] if inner else inner.add()
    if message.DESCRIPTOR.fields_by_name[last].is_repeated:
        del getattr(message, last)[:]
        getattr(message, last).append(at)
    else:
        setattr(message, last, at)


class Road:
    """Runs calls of anybody through the one pipeline."""

    def __init__(self) -> None:
        self._caller = Caller()
        self._pipeline = Pipeline(METHODS.values(), authenticate=self._who, registry=CollectorRegistry())

    async def _who(self, _call: Call) -> Caller:
        return self._caller

    async def fault(self, rpc: str, caller: Caller, at: str = "", *, peer: str = "", whole: Message | None = None) -> Fault | None:
        """Why the call does not reach its handler; None when it does."""
        method = METHODS[rpc]
        self._caller = caller
        call = Call(method, peer=peer)
        asked = request(method, at) if whole is None else whole
        try:
            if method.streams:
                await anext(self._pipeline.stream(call, asked))
            else:
                await self._pipeline.unary(call, asked)
        except Reached:
            return None
        except Fault as fault:
            return fault
        raise AssertionError("neither reached nor refused")
