"""What the pipeline asks of the parts that keep, record and limit; libs/audit and the gateway's edge give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from google.protobuf.message import Message

from libs.faults import Fault
from libs.rpc.call import Call


class WorkUnit(Protocol):
    """The one transaction of a call; nothing is opened before the first `begin`."""

    async def begin(self, call: Call) -> Any:
        """The transaction, opened at the first ask."""
        ...

    async def replay(self, call: Call, request: Message) -> Message | None:
        """The stored answer to the same request; Precondition when the same request id came with another body. WRITE and SENSITIVE only."""
        ...

    async def commit(self, call: Call, request: Message, reply: Message) -> None:
        """Commits; for WRITE and SENSITIVE that are not external the audit record and the idempotency answer go with it."""
        ...

    async def rollback(self) -> None:
        """Gives up what was begun; harmless when nothing was."""
        ...


class Units(Protocol):
    """Makes the unit of each call."""

    def open(self, call: Call) -> WorkUnit:
        """A unit for one call; no I/O yet."""
        ...


class Audit(Protocol):
    """Keeps the record of calls outside of a call's own transaction. Rules with audit NONE never come here."""

    async def denied(self, call: Call, request: Message | None, fault: Fault) -> None:
        """WRITE or SENSITIVE: refused before or by the handler, for who asks."""
        ...

    async def failed(self, call: Call, request: Message | None, fault: Fault) -> None:
        """WRITE or SENSITIVE: not done."""
        ...

    async def intent(self, call: Call, request: Message) -> None:
        """External WRITE or SENSITIVE: committed before the handler; when it raises, the call is refused."""
        ...

    async def outcome(self, call: Call, request: Message, fault: Fault | None) -> None:
        """Ends what `intent` began."""
        ...

    def read(self, call: Call, request: Message | None, code: str) -> None:
        """READ, done or not: buffered; `code` is a canonical code's name, `OK` when done."""
        ...


class Limiter(Protocol):
    """Says how much is too much; each method raises Exhausted with `retry_after`."""

    def address(self, call: Call) -> None:
        """Before authentication, by the client's address."""
        ...

    def caller(self, call: Call) -> None:
        """After authentication, by caller and rate class; STREAMS are held until `release`."""
        ...

    def failed(self, call: Call) -> None:
        """Authentication failed: costs the address more. Never raises."""
        ...

    def release(self, call: Call) -> None:
        """A call that `caller` let in has ended. Never raises."""
        ...

    async def turn(self, call: Call) -> Callable[[], None] | None:
        """After authorisation, by tenant: waits for a fair turn; what it returns gives the turn back when the call has ended."""
        ...
