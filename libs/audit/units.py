"""A call's one transaction: its rows, its audit record and the answer to its request id commit together."""

from __future__ import annotations

from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2
from libs.audit import requests
from libs.audit.auditor import Auditor
from libs.audit.entry import Outcome, of_call
from libs.clock import new_id
from libs.pg import Database, Transaction, Tx
from libs.rpc.call import Call

_KEPT = (policy_pb2.Rule.WRITE, policy_pb2.Rule.SENSITIVE)


class PgUnits:
    """Implements the pipeline's `Units` over PostgreSQL.

    Args:
        database: where the service's rows are, and schema `audit`.
        auditor: the process's.
        key: secret of the hub that hashes of requests are keyed with; the same in all replicas.
    """

    def __init__(self, database: Database, auditor: Auditor, *, key: bytes) -> None:
        self.database = database
        self.auditor = auditor
        self.key = key

    def open(self, call: Call) -> PgUnit:  # noqa: ARG002 -- the protocol's
        """A unit for one call; no I/O yet."""
        return PgUnit(self)


class PgUnit:
    """The transaction of one call, begun at the first ask."""

    def __init__(self, units: PgUnits) -> None:
        self._units = units
        self._transaction: Transaction | None = None
        self._request_id = ""
        # the record's id: if a commit's outcome stays in doubt, the record of the failure yields to one that was committed
        self.event = new_id()

    async def begin(self, call: Call) -> Tx:  # noqa: ARG002 -- the protocol's
        """The transaction."""
        if self._transaction is None:
            self._transaction = await self._units.database.begin()
        return self._transaction.tx

    async def replay(self, call: Call, request: Message) -> Message | None:
        """The answer that this request id was given before; None when the work is to be done.

        Raises Precondition when the id came with another body.
        """
        self._request_id = requests.request_id(call, request)
        if not self._request_id:
            return None
        body = requests.digest(self._units.key, request)
        return await requests.claim(await self.begin(call), call, self._request_id, body)

    async def commit(self, call: Call, request: Message, reply: Message) -> None:
        """Commits the rows with the record of a WRITE or SENSITIVE and the answer; an external call's record has its own two."""
        recorded = call.method.rule.audit in _KEPT and not call.method.rule.external and not call.recorded
        if recorded:
            await self._units.auditor.record(await self.begin(call), of_call(call, request, Outcome.OK))
        if self._request_id:
            await requests.keep(await self.begin(call), call, self._request_id, reply)
        if self._transaction is not None:
            await self._units.database.finish("call commit", self._transaction.commit())
        call.recorded = call.recorded or recorded

    async def rollback(self) -> None:
        """Gives up what was begun."""
        if self._transaction is not None:
            await self._units.database.finish("call rollback", self._transaction.rollback())
