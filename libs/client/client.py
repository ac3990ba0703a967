"""The connection: channel, credential, attempts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from kubegems.identity.v1 import session_service_pb2, session_service_pb2_grpc
from kubegems.policy.v1 import policy_pb2
from libs.client import paging, streams
from libs.client.credentials import Anonymous, ApiKey, Credential, Session
from libs.client.retry import Retries, passing
from libs.faults import Code, DeadlineExceeded, Fault
from libs.rpc import status

S = TypeVar("S")
Q = TypeVar("Q", bound=Message)
SECONDS = 30.0  # of a unary call, all attempts together
_REFRESH = 10.0  # of renewing a token, within the call that needs it
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # else C-core waits a minute, whatever the line above says
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.enable_retries", 0),  # they are ours: gRPC knows no idempotency keys
)
_Rule = policy_pb2.Rule


class Client:
    """A caller of one hub. Make it inside the running loop, use it as `async with`.

    Args:
        target: `host:port` of the hub's gRPC.
        ca: file with the CA (PEM) that its certificate must be of.
        api_key: who calls; or call `sign_in`.
        name: the name in the hub's certificate, when the target says another.
        retries: how to try again.
    """

    def __init__(self, target: str, *, ca: Path, api_key: str = "", name: str = "", retries: Retries | None = None) -> None:
        tls = grpc.ssl_channel_credentials(ca.read_bytes())
        options = [*_OPTIONS, *([("grpc.ssl_target_name_override", name)] if name else [])]
        self._channel = grpc.aio.secure_channel(target, tls, options=options)
        self._target, self.retries = target, retries or Retries()
        self._credential: Credential = ApiKey(api_key) if api_key else Anonymous()
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends calls under way and the channel; the session stays until `sign_out` or its time."""
        await self._keep(None)
        await self._channel.close()

    async def sign_in(self, username: str, password: str) -> str:
        """Signs in; the session's name. Raises Unauthenticated, or Exhausted with `retry_after`. Tokens are renewed from here on."""
        self._credential = Anonymous()
        request = session_service_pb2.CreateSessionRequest(username=username, password=password)
        session = Session(await self._sessions.CreateSession(request), self._refresh)
        self._credential = session
        await self._keep(session)
        return session.name

    async def sign_out(self) -> None:
        """Ends the session at the hub."""
        session, request = self._credential, session_service_pb2.DeleteSessionRequest
        if isinstance(session, Session):
            await self._sessions.DeleteSession(request(name=session.name))
            self._credential = Anonymous()
            await self._keep(None)

    def stub(self, kind: Callable[[grpc.aio.Channel], S]) -> S:
        """The generated stub of a service: `await stub.Rpc(request, timeout=5)`, `async for item in stub.Stream(request)`."""
        return kind(cast("grpc.aio.Channel", self))

    def pages(self, method: Callable[..., Awaitable[Any]], request: Message, **options: Any) -> AsyncIterator[Any]:
        """Every item of a list, page by page."""
        return paging.pages(method, request, **options)

    def stream(
        self, method: Callable[..., Any], request: Message, *, lost: Callable[[Fault], None] | None = None
    ) -> AsyncGenerator[Any, None]:
        """Items of a server stream through outages; see `streams.resumed`."""
        return streams.resumed(method, request, self.retries, lost=lost)

    # -- what generated stubs ask of a channel

    def unary_unary(self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """An async function of (request, timeout, metadata)."""
        invoke = self._channel.unary_unary(path, request_serializer, response_deserializer)
        rule = _rule(path)
        again, once = _repeatable(rule), _keyed(rule)

        async def call(request: Any, *, timeout: float = SECONDS, metadata: tuple[tuple[str, str], ...] = ()) -> Any:
            ends, attempt = time.monotonic() + timeout, 0
            carried = (*metadata, ("idempotency-key", str(uuid.uuid4()))) if once else metadata
            while True:
                attempt += 1
                try:
                    return await self._attempt(invoke, request, ends - time.monotonic(), carried)
                except Fault as fault:
                    pause = self.retries.pause(attempt, fault)
                    spent = attempt >= self.retries.most or time.monotonic() + pause >= ends
                    if spent or not again or not passing(fault):
                        raise
                await asyncio.sleep(pause)

        return call

    def unary_stream(self, path: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        """An async generator of (request, timeout, metadata); one connection's worth, `stream` gives more."""
        invoke = self._channel.unary_stream(path, request_serializer, response_deserializer)

        async def call(request: Any, *, timeout: float | None = None, metadata: tuple[tuple[str, str], ...] = ()) -> AsyncIterator[Any]:
            token, seen = await self._credential.bearer(), False
            while True:
                opened = invoke(request, timeout=timeout, metadata=(*metadata, *_authorization(token)))
                try:
                    async for item in opened:
                        seen = True
                        yield item
                except grpc.aio.AioRpcError as error:
                    fault, _ = status.from_rpc_error(error, self._target)
                    if seen or fault.code is not Code.UNAUTHENTICATED or not await self._credential.renewed(token):
                        raise fault from error
                else:
                    return
                finally:
                    opened.cancel()
                token, seen = await self._credential.bearer(), True

        return call

    def stream_unary(self, *_: Any, **__: Any) -> Any:
        """Uploads are REST's."""
        return None

    stream_stream = stream_unary

    # -- inside

    @property
    def _sessions(self) -> Any:
        return self.stub(session_service_pb2_grpc.SessionServiceStub)

    async def _attempt(self, invoke: Any, request: Any, seconds: float, metadata: tuple[tuple[str, str], ...]) -> Any:
        """One attempt; two when the token is refused and another one can be had."""
        if seconds <= 0:
            raise DeadlineExceeded("the call's time is up")
        ends = time.monotonic() + seconds
        token = "" if request.DESCRIPTOR.name in _WITHOUT_TOKEN else await self._bearer(seconds)
        for last in (False, True):
            try:
                return await invoke(request, timeout=max(0.001, ends - time.monotonic()), metadata=(*metadata, *_authorization(token)))
            except grpc.aio.AioRpcError as error:
                fault, _ = status.from_rpc_error(error, self._target)
                if last or not token or fault.code is not Code.UNAUTHENTICATED or not await self._credential.renewed(token):
                    raise fault from error
            token = await self._credential.bearer()
        raise AssertionError("the second attempt returns or raises")

    async def _bearer(self, seconds: float) -> str:
        try:
            async with asyncio.timeout(seconds):
                return await self._credential.bearer()
        except TimeoutError as error:
            raise DeadlineExceeded("the token could not be renewed in the call's time") from error

    async def _refresh(self, token: str) -> Any:
        return await self._sessions.RefreshSession(session_service_pb2.RefreshSessionRequest(refresh_token=token), timeout=_REFRESH)

    async def _keep(self, session: Session | None) -> None:
        """Renews this session in the background, and no other."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self._keeping = asyncio.create_task(session.keep(), name="client tokens") if session else None


_WITHOUT_TOKEN = frozenset({"CreateSessionRequest", "RefreshSessionRequest"})


def _authorization(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


def _rule(path: str) -> policy_pb2.Rule:
    """The rule of `/package.Service/Method`; an empty one when its proto is not imported."""
    service, _, method = path[1:].rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    except KeyError:
        return _Rule()
    rule: policy_pb2.Rule = found.GetOptions().Extensions[policy_pb2.rule]
    return rule


def _keyed(rule: policy_pb2.Rule) -> bool:
    """Whether the hub remembers an idempotency key for it: a signed-in caller's change."""
    return rule.auth == _Rule.USER and rule.audit in (_Rule.WRITE, _Rule.SENSITIVE)


def _repeatable(rule: policy_pb2.Rule) -> bool:
    """Whether a second attempt does no harm."""
    return _keyed(rule) or (rule.auth == _Rule.USER and rule.audit in (_Rule.READ, _Rule.NONE))
