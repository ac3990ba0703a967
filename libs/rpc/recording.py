"""Which audit act a call's stage asks for, by the class in its rule; a record that cannot be written never hides the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2
from libs import log
from libs.faults import Code, Fault, rebuilt
from libs.rpc.call import Call
from libs.rpc.protocols import Audit

_Rule = policy_pb2.Rule
_READ, _NONE = _Rule.READ, _Rule.NONE  # looked up once: an enum of protobuf is slow to ask
_WRITES = (_Rule.WRITE, _Rule.SENSITIVE)
_REFUSALS = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)
_SECONDS = 5.0
_log = log.get("libs.rpc")


class Recording:
    """Asks the audit for records, or does nothing without one."""

    def __init__(self, audit: Audit | None) -> None:
        self._audit = audit

    async def begin(self, call: Call, request: Message) -> None:
        """Before the handler: the intent of what leaves PostgreSQL; a stream's own record, since it may stay open for days."""
        if self._audit is None or call.method.forwarded:
            return
        if _external(call):
            await self._audit.intent(call, request)
        elif call.method.streams and call.method.rule.audit == _READ:
            self._audit.read(call, request, "OK")
            call.recorded = True

    async def done(self, call: Call, request: Message, *, replayed: bool) -> None:
        """After the commit; WRITE records went with it."""
        if self._audit is None or call.method.forwarded or call.method.rule.audit == _NONE:
            return
        if _external(call) and not replayed:
            await self._safe(self._audit.outcome(call, request, None), "audit.outcome_failed")
        elif call.method.rule.audit == _READ or replayed:
            self._audit.read(call, request, "OK")
        call.recorded = True

    async def stream_ended(self, call: Call, request: Message, fault: Fault | None) -> None:
        """After a stream, however it ended."""
        if self._audit is not None and _external(call) and not call.recorded:
            call.recorded = True
            await self._safe(self._audit.outcome(call, request, fault), "audit.outcome_failed")

    async def failed(self, call: Call, request: Message | None, error: BaseException, *, handled: bool, admitted: bool) -> None:
        """After a refusal or failure."""
        audit = self._audit
        if audit is None or call.recorded or call.method.rule.audit == _NONE:
            return
        call.recorded = True
        fault = error if isinstance(error, Fault) else rebuilt(Code.CANCELLED, "CANCELLED", "the caller went away")
        if call.method.rule.audit == _READ:
            audit.read(call, request, fault.code.name)
        elif handled and request is not None and _external(call) and not call.method.forwarded:
            await self._safe(audit.outcome(call, request, fault), "audit.outcome_failed")
        elif fault.code in _REFUSALS or (not admitted and fault.code in (Code.NOT_FOUND, Code.RESOURCE_EXHAUSTED)):
            await self._safe(audit.denied(call, request, fault), "audit.denied_failed")
        else:
            await self._safe(audit.failed(call, request, fault), "audit.failed_failed")

    async def safely(self, work: Awaitable[None], event: str) -> None:
        """Runs clean-up that must not hide what went wrong before it."""
        await self._safe(work, event)

    async def _safe(self, work: Awaitable[None], event: str) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                await work
        except Exception as error:  # noqa: BLE001 -- the answer stands whatever becomes of its record; orphans are found later
            _log.error(event, exc_info=error)


def _external(call: Call) -> bool:
    return bool(call.method.rule.external) and call.method.rule.audit in _WRITES
