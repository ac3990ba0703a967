"""The audit record of one request under `/k8s`: who, what, on what, how it ended. Never bodies, queries or tokens."""

from __future__ import annotations

import dataclasses
import time
from typing import Protocol
from uuid import UUID

from libs import clock
from libs.audit.entry import Entry, Outcome
from libs.faults import Fault
from libs.rpc.call import Caller
from libs.tunnel.kubernetes import Target


class Journal(Protocol):
    """What libs.audit's Auditor does for work that is no RPC."""

    async def begin(self, entry: Entry) -> UUID:
        """Commits an intent; raises Unavailable when it cannot be recorded."""
        ...

    async def end(self, intent: UUID, entry: Entry) -> None:
        """Gives an intent its outcome; fails never."""
        ...

    def buffer(self, entry: Entry) -> None:
        """Keeps a record for the next flush."""
        ...


class Record:
    """The record of one request.

    Args:
        journal: where it goes.
        address: the client's.
        user_agent: what it calls itself.
        cluster: the cluster's name.
    """

    def __init__(self, journal: Journal, *, address: str, user_agent: str, cluster: str) -> None:
        self._journal = journal
        self._started = time.monotonic()
        self._intent: UUID | None = None
        self._entry = Entry(
            method="kubernetes/unknown", class_="READ", address=address, user_agent=user_agent[:256],
            resources=(f"clusters/{cluster}",), request_id=clock.new_id().hex,
        )  # fmt: skip

    @property
    def request_id(self) -> str:
        """Our id of the request."""
        return self._entry.request_id

    def about(self, caller: Caller, target: Target, http_method: str, environment: str, *, named: str = "") -> None:
        """Says who asks for what, and as which other user."""
        facts = {
            "method": http_method, "path": target.path, "verb": target.verb, "group": target.group, "resource": target.resource,
            "namespace": target.namespace, "name": target.name, "subresource": target.subresource,
            "as": f"users/{named}" if named else "",
        }  # fmt: skip
        cluster = self._entry.resources[0]
        self._entry = dataclasses.replace(
            self._entry, method=f"kubernetes/{target.action}", class_=_class(target), actor=caller.name, actor_uid=caller.uid,
            session=caller.session, resources=(cluster, environment) if environment else (cluster,),
            tenant="/".join(environment.split("/")[:2]), request={k: v for k, v in facts.items() if v},
        )  # fmt: skip

    async def begin(self) -> None:
        """Commits the intent of what is more than a read; raises, and then it must not happen."""
        if self._entry.class_ != "READ":
            self._intent = await self._journal.begin(self._ended(Outcome.PENDING, "", ""))

    async def done(self, code: str, reason: str = "") -> None:
        """Records how it ended: `OK` or another canonical code's name."""
        entry = self._ended(Outcome.of(code), "" if code == "OK" else code, reason)
        if self._intent is not None:
            intent, self._intent = self._intent, None
            await self._journal.end(intent, entry)
        elif self._entry is not None:
            self._journal.buffer(dataclasses.replace(entry, id=clock.new_id()))

    async def failed(self, fault: Fault) -> None:
        """Records that the gateway refused, or could not."""
        await self.done(fault.code.name, fault.reason)

    def _ended(self, outcome: Outcome, code: str, reason: str) -> Entry:
        return dataclasses.replace(self._entry, outcome=outcome, code=code, reason=reason, took=time.monotonic() - self._started)


def _class(target: Target) -> str:
    if target.sensitive:
        return "SENSITIVE"
    return "READ" if target.reads else "WRITE"
