"""One Kubernetes request and its answer, on a stream that lives as long as its grant is renewed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.faults import Code, DeadlineExceeded, Exhausted, Fault, Unavailable
from libs.tunnel import Ended, Reset, Stream, StreamEnded, calls
from libs.tunnel.kubernetes import Header, reply_headers
from services.gateway.link.grants import QUARTER_LIFE, Principal

Body = bytes | AsyncIterable[bytes] | None
Renew = Callable[[], Awaitable[Principal]]
SWITCHING = 101
_BODILESS = (SWITCHING, 204, 304)
_RETRY_SECONDS = 2.0
_log = log.get("services.gateway.link")
_WHAT = "the request"


class BadReply(Unavailable):
    """The agent's answer makes no sense."""

    reason = "BAD_REPLY"


class Exchange:
    """An answer whose head has come. Iterate for its body; after a 101, `write` sends raw bytes.

    Attributes:
        status: HTTP status; 0 until the head has come.
        headers: end-to-end headers of the answer.
        ended: why it was broken off by the hub; empty while it was not.
        stopped: whether it was broken off because a gateway on its way is being restarted.
    """

    def __init__(self, stream: Stream, *, upgrade: bool, method: str = "GET") -> None:
        self.status = 0
        self.headers: tuple[Header, ...] = ()
        self.ended = ""
        self.stopped = False
        self._stream = stream
        self._upgrade = upgrade
        self._method = method
        self._left: int | None = None  # of the body, where the head says how long it is
        self._body_fault: Fault | None = None
        self._sending: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def outcome(self) -> tuple[str, str] | None:
        """Code and reason of what the hub broke off, for audit; None for what it did not."""
        if self.ended:
            return "PERMISSION_DENIED", "ACCESS_ENDED"
        return ("UNAVAILABLE", "GATEWAY_STOPPING") if self.stopped else None

    async def begin(self, body: Body, head_seconds: float | None) -> None:
        """Sends the body and waits for the head; raises Fault."""
        try:
            async with asyncio.timeout(head_seconds):
                if isinstance(body, bytes):
                    await self._send_all(body)
                elif body is not None:
                    self._sending = asyncio.create_task(self._pump(body), name="kubernetes request body")
                head = await self._stream.receive()
        except TimeoutError as error:
            raise DeadlineExceeded("the cluster's API server did not answer in time") from error
        except StreamEnded as error:
            raise self._fault(error) from error
        if head is None:
            raise calls.failure(self._stream.trailer) or BadReply("the cluster's answer has no head")
        try:
            reply = tunnel_pb2.KubernetesReply.FromString(head)
        except DecodeError as error:
            raise BadReply("the cluster's answer cannot be read") from error
        if not SWITCHING <= reply.status <= 599 or (reply.status == SWITCHING) > self._upgrade:  # noqa: PLR2004 -- HTTP's range
            raise BadReply("the cluster's answer has an impossible status")
        self.status = reply.status
        self.headers = reply_headers((h.name.encode(), h.value) for h in reply.headers)  # an agent may be its cluster's
        self._left = self._length()

    def _length(self) -> int | None:
        """Bytes of the body; None when the head does not say, or there is none whatever it says."""
        if self._method == "HEAD" or self.status in _BODILESS:
            return None
        text = dict(self.headers).get("content-length")
        if text is None:
            return None
        if not text.isdigit():
            raise BadReply("the cluster's answer has an impossible length")
        return int(text)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body's bytes; raises Fault when it breaks off."""
        while chunk := await self.read():
            yield chunk

    async def read(self) -> bytes:
        """The next bytes; empty at the end. Raises Fault when it breaks off."""
        try:
            chunk = await self._stream.read()
        except StreamEnded as error:
            raise self._fault(error) from error
        if not chunk and (fault := calls.failure(self._stream.trailer)) is not None:
            raise fault
        if self._left is not None:
            self._left -= len(chunk)
            if self._left < 0 or (not chunk and self._left):  # what follows on the client's connection would be misread
                raise BadReply("the cluster's answer is not as long as its head says")
        return chunk

    async def whole(self, most: int) -> bytes:
        """The whole body; Exhausted when it is larger than `most` bytes."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self:
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                raise Exhausted(f"the answer is larger than {most} bytes")
        return b"".join(parts)

    async def write(self, content: bytes) -> None:
        """Sends raw bytes after a 101; raises Fault when the stream is gone."""
        try:
            await self._stream.write(content)
        except StreamEnded as error:
            raise self._fault(error) from error

    def end(self) -> None:
        """Nothing follows from our side."""
        self._stream.end()

    def stop(self, why: str) -> None:
        """Breaks it off now: the caller's access ended."""
        self.ended = self.ended or why
        self._stream.reset(Reset.EXPIRED, why)

    def gateway_stops(self) -> None:
        """Breaks it off: this gateway is being restarted."""
        self.stopped = True
        self._stream.reset(Reset.STOPPING, "this gateway is being restarted")

    def let_go(self) -> None:
        """The caller went away: whoever reads hears of it now."""
        self._stream.reset(Reset.CANCELLED, "the client went away")

    async def aclose(self) -> None:
        """Lets go of everything; breaks the stream off when it is not over."""
        if self._timer is not None:
            self._timer.cancel()
        self._stream.reset(Reset.CANCELLED)
        tasks = [t for t in (self._sending, self._renewing) if t is not None and not t.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.aclose()

    # -- the body

    async def _send_all(self, body: bytes) -> None:
        try:
            await self._stream.write(body)
            self._stream.end()
        except Ended as error:
            if error.code is not Reset.DONE:  # an answer came before the body was read
                raise

    async def _pump(self, body: AsyncIterable[bytes]) -> None:
        try:
            async for piece in body:
                await self._stream.write(piece)
            self._stream.end()
        except StreamEnded:
            pass  # whoever reads the answer learns of it
        except Fault as fault:
            self._body_fault = fault
            self._stream.reset(Reset.CANCELLED, "the request's body was refused")
        except Exception as error:  # noqa: BLE001 -- a task's last line: whoever sends the body failed
            self.ended = self.ended or "the request's body broke off"
            _log.info("kubernetes.body_broken", cause=type(error).__name__)
            self._stream.reset(Reset.CANCELLED, "the request's body broke off")

    # -- the grant

    def keep_granted(self, principal: Principal, renew: Renew | None, regrant: Callable[[Principal], Awaitable[None]]) -> None:
        """Renews the grant before half of what is left of it, as long as the stream lives and `renew` allows it.

        Args:
            principal: as whom the stream runs.
            renew: asks again whether the caller may, and as whom; None for unattended work.
            regrant: sends the new grant to the agent.
        """
        loop = asyncio.get_running_loop()

        def due() -> None:
            if self._renewing is None or self._renewing.done():
                self._renewing = loop.create_task(self._renew(principal, renew, regrant), name="kubernetes regrant")
            self._timer = loop.call_later(2 * QUARTER_LIFE, due)

        # a grant that others use too may have half its life behind it; a renewed one has three quarters before it
        self._timer = loop.call_later(QUARTER_LIFE, due)

    async def _renew(self, old: Principal, renew: Renew | None, regrant: Callable[[Principal], Awaitable[None]]) -> None:
        while self._stream.error is None:
            try:
                principal = await renew() if renew is not None else old
                if not covers(principal, old):
                    self.stop("access was taken away")
                else:
                    await regrant(principal)
            except Fault as fault:
                if fault.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    await asyncio.sleep(_RETRY_SECONDS)  # the agent ends the stream when its grant does
                    continue
                self.stop("access ended")
            except StreamEnded:
                pass  # the agent ends the stream when its grant does
            return

    def _fault(self, error: StreamEnded) -> Fault:
        if self._body_fault is not None:
            return self._body_fault
        if self.ended:
            return AccessEnded(f"the request was broken off: {self.ended}")
        fault = calls.fault_of(error, _WHAT)
        self.stopped = self.stopped or isinstance(fault, calls.Stopping)
        return fault


class AccessEnded(Unavailable):
    """The caller's session, rights or body ended while the request ran."""

    reason = "ACCESS_ENDED"


def covers(new: Principal, old: Principal) -> bool:
    """Whether what runs as `old` may run on as `new`: the same user, no group lost."""
    return (new.user, new.uid) == (old.user, old.uid) and set(old.groups) <= set(new.groups)
