"""Every kind of fault that the code knows, and what is no fault, through the pipeline to each wire: one form, nothing told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from prometheus_client import CollectorRegistry

from libs.faults import Fault, Violation
from libs.rest.errors import HTTP_STATUS
from libs.rest.tests.library import LIBRARY, Library, Served, served
from libs.rpc import Pipeline, Server, methods
from libs.rpc.sizes import TooLarge
from libs.rpc.tests.doubles import Users
from tests.contract import errors_page
from tests.integration.errors.wire import leaks, standard

list(errors_page._classes())  # imports every module that has one
KINDS = sorted(errors_page._below(Fault) - {Fault}, key=lambda kind: (kind.__module__, kind.__qualname__))
KINDS = [kind for kind in KINDS if "reason" in vars(kind) and kind.__module__.startswith(("libs.", "services."))]
BOOK = "/v1/shelves/1/books/2"
_PLANTED = 'SELECT name FROM identity.users -- File "/srv/hub/api.py", line 7 at 10.1.2.3:5432'
CRASHES: dict[str, Callable[[], BaseException]] = {
    "a mistake": lambda: RuntimeError(_PLANTED),
    "a broken connection": lambda: ConnectionRefusedError(111, _PLANTED),
    "a missing file": lambda: FileNotFoundError(2, _PLANTED, "/etc/kubegems/key"),
    "a time-out inside": lambda: TimeoutError(_PLANTED),
    "a key": lambda: KeyError(_PLANTED),
    "a group": lambda: ExceptionGroup(_PLANTED, [RuntimeError(_PLANTED)]),
    "no unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, _PLANTED),
    "recursion": lambda: RecursionError(_PLANTED),
}


@asynccontextmanager
async def raising(error: Callable[[], BaseException]) -> AsyncIterator[Served]:
    """The library, of which each call raises; its streams after their first item."""

    async def unary(self: Library, request: Any, call: Any) -> Any:
        raise error()

    async def tail(self: Library, request: Any, call: Any) -> AsyncIterator[Any]:
        yield (await Library._get(self, request, call))
        raise error()

    async with served() as shop:
        for name, handler in (("Get", unary), ("Tail", tail)):
            method = shop.pipeline.method(f"/kubegems.library.Library/{name}")
            object.__setattr__(method, "handler", handler.__get__(shop.library))
        yield shop


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_each_fault_has_the_standard_form(kind: type[Fault]) -> None:
    """Its status, code and reason, fields, delay and id; as an answer of its own and as the end of a stream of either form."""
    fault = kind.__new__(kind)  # some make their own words
    Fault.__init__(fault, "what was wrong", {"fact": "acme"}, (Violation("name", "is wrong"),), timedelta(seconds=2))
    async with raising(lambda: fault) as shop:
        status, headers, raw = await shop.get(BOOK)
        error = standard(status, headers, json.loads(raw))
        assert (status, error["status"]) == (413 if kind is TooLarge else HTTP_STATUS[kind.code], kind.code.name)
        assert error["details"][0]["reason"] == kind.reason
        assert headers["Retry-After"] == "2"
        for accept in ("text/event-stream", "application/x-ndjson"):
            _, headers, raw = await shop.get(f"{BOOK}:tail", headers={"Accept": accept})
            last = raw.strip().splitlines()[-1].removeprefix(b"data: ")
            assert standard(json.loads(last)["error"]["code"], headers, json.loads(last))["details"][0]["reason"] == kind.reason


@pytest.mark.parametrize("name", CRASHES)
async def test_what_is_no_fault_tells_an_id_and_nothing_else(name: str) -> None:
    """INTERNAL, or UNAVAILABLE for what was away; not one word of the cause, at the begin or in the middle of a stream."""
    async with raising(CRASHES[name]) as shop:
        status, headers, raw = await shop.get(BOOK)
        error = standard(status, headers, json.loads(raw))
        assert error["status"] in ("INTERNAL", "UNAVAILABLE")
        _, headers, raw = await shop.get(f"{BOOK}:tail")
        last = json.loads(raw.strip().splitlines()[-1])
        standard(last["error"]["code"], headers, last)


@pytest.mark.parametrize("name", CRASHES)
async def test_grpc_tells_no_more(name: str) -> None:
    """The status' message, its details and the trailing metadata."""

    class Broken(Library):
        async def Get(self, request: Any, call: Any) -> Any:
            error = CRASHES[name]()
            raise error

    pipeline = Pipeline(methods(LIBRARY, Broken()), authenticate=Users(), registry=CollectorRegistry())
    server = Server(pipeline)
    port = server.listen("127.0.0.1:0", None)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/kubegems.library.Library/Get")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\x0a\x11shelves/1/books/2", metadata=(("authorization", "Bearer admin"),))
    await server.drain(0.1)
    trailing = dict(refused.value.trailing_metadata() or ())
    raw = trailing["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(raw if isinstance(raw, bytes) else raw.encode())
    info = error_details_pb2.RequestInfo()
    assert status.details[-1].Unpack(info)
    assert info.request_id == trailing["kubegems-request-id"]
    texts = [refused.value.details() or "", str(status), *(v if isinstance(v, str) else "" for v in trailing.values())]
    assert not [found for text in texts for found in leaks(text)]
