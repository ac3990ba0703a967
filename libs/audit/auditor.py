"""The process's auditor: records outside of a call's own transaction, and what keeps the records whole."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque

from google.protobuf.message import Message
from prometheus_client import Counter

from kubegems.policy.v1 import policy_pb2
from libs import clock, log
from libs.audit import store
from libs.audit.entry import Entry, Outcome, of_call
from libs.faults import Fault
from libs.pg import Database, Tx
from libs.rpc.call import Call

_log = log.get("libs.audit")
_LOST = Counter("kubegems_audit_lost", "Audit records that could not be kept.", ["class"])
_BUFFER = 10_000
_BATCH = 500
_FLUSH = 0.5  # seconds; a READ is stored within a second
_HEARTBEAT = 5.0
_SILENT = 20.0  # seconds after which a process counts as gone: it missed three heartbeats
_SWEEP = 15.0
_FORGET = 600.0
_LAST = 5.0


class Auditor:
    """Implements the pipeline's `Audit`.

    Args:
        database: holds schema `audit`.
        process: name of the service, for people.
    """

    def __init__(self, database: Database, process: str) -> None:
        self.epoch = clock.new_id()
        self._database = database
        self._process = process
        self._buffer: deque[Entry] = deque()
        self._full = asyncio.Event()
        self._intents: dict[int, tuple[Call, uuid.UUID]] = {}

    # -- the pipeline's protocol

    async def denied(self, call: Call, request: Message | None, fault: Fault) -> None:
        """Records a refusal in a transaction of its own; its failure is counted, the refusal stands."""
        await self._apart(of_call(call, request, Outcome.DENIED, fault.code.name, fault.reason))

    async def failed(self, call: Call, request: Message | None, fault: Fault) -> None:
        """Records a failure in a transaction of its own; its failure is counted, the failure stands."""
        await self._apart(of_call(call, request, Outcome.FAILED, fault.code.name, fault.reason))

    async def intent(self, call: Call, request: Message) -> None:
        """Commits that a call is about to leave PostgreSQL; Unavailable when it cannot be recorded, and then it must not."""
        self._intents[id(call)] = (call, await self.begin(of_call(call, request, Outcome.PENDING)))

    async def outcome(self, call: Call, request: Message, fault: Fault | None) -> None:
        """Ends what `intent` began. Fails never: without it the record becomes UNKNOWN, which is then true."""
        _, intent = self._intents.pop(id(call), (None, None))
        if intent is None:
            return
        if fault is None:
            await self.end(intent, of_call(call, request, Outcome.OK))
        else:
            await self.end(intent, of_call(call, request, Outcome.of(fault.code.name), fault.code.name, fault.reason))

    def read(self, call: Call, request: Message | None, code: str) -> None:
        """Buffers the record of a read, or of an answer given again."""
        reason = "REPLAYED" if call.method.rule.audit != policy_pb2.Rule.READ else ""
        self.buffer(of_call(call, request, Outcome.of(code), "" if code == "OK" else code, reason))

    # -- for work that is no RPC

    async def record(self, tx: Tx, entry: Entry) -> uuid.UUID:
        """Stores a record in a transaction of the caller's; its id."""
        await store.insert(tx, self.epoch, entry)
        return entry.id

    async def begin(self, entry: Entry) -> uuid.UUID:
        """Commits an intent (outcome PENDING); its id. Unavailable: it is not recorded, so the act must not happen."""
        async with self._database.transaction() as tx:
            return await self.record(tx, entry)

    async def end(self, intent: uuid.UUID, entry: Entry) -> None:
        """Gives an intent its outcome, from an entry's outcome, code, reason, took, resources and tenant. Fails never."""
        try:
            async with self._database.transaction() as tx:
                await store.end(tx, intent, entry)
        except Exception as error:  # noqa: BLE001 -- the act is done whatever happens here; the sweep makes it UNKNOWN
            _LOST.labels(entry.class_).inc()
            _log.error("audit.outcome_lost", event=str(intent), error=repr(error))

    def buffer(self, entry: Entry) -> None:
        """Keeps a record for the next flush; when too many wait it is lost, counted and logged."""
        if len(self._buffer) >= _BUFFER:
            _LOST.labels(entry.class_).inc()
            return
        self._buffer.append(entry)
        if len(self._buffer) >= _BATCH:
            self._full.set()

    # -- upkeep

    async def run(self) -> None:
        """Flushes, shows that the process lives, marks orphans, forgets old answers; until cancelled. Spawn it once."""
        loop = asyncio.get_running_loop()
        due = dict.fromkeys((self._beat, self._sweep, self._forget), 0.0)
        every = {self._beat: _HEARTBEAT, self._sweep: _SWEEP, self._forget: _FORGET}
        while True:
            try:
                await self.flush()
                for step, at in due.items():
                    if loop.time() >= at:
                        await step()
                        due[step] = loop.time() + every[step]
            except Exception as error:  # noqa: BLE001 -- whatever it is, records keep coming and must be tried again
                _log.warning("audit.upkeep_failed", waiting=len(self._buffer), error=repr(error))
                await asyncio.sleep(random.uniform(0.2, 1.0))  # noqa: S311 -- jitter
            self._full.clear()
            try:
                async with asyncio.timeout(_FLUSH):
                    await self._full.wait()
            except TimeoutError:
                pass

    async def flush(self) -> None:
        """Stores what is buffered; what cannot be stored stays for the next time."""
        while self._buffer:
            batch = [self._buffer[i] for i in range(min(_BATCH, len(self._buffer)))]
            async with self._database.transaction() as tx:
                await store.insert_many(tx, self.epoch, batch)
            for _ in batch:
                self._buffer.popleft()

    async def close(self) -> None:
        """Flushes and says good-bye, within 5 s. Put it on the stack below the pipeline and above the database."""
        try:
            async with asyncio.timeout(_LAST):
                await self.flush()
                async with self._database.transaction() as tx:
                    await store.ended(tx, self.epoch)
        except Exception as error:  # noqa: BLE001 -- the process ends anyway; say what is lost
            _LOST.labels("READ").inc(len(self._buffer))
            _log.error("audit.lost", records=len(self._buffer), error=repr(error))

    async def sweep(self) -> int:
        """Makes intents whose process is gone UNKNOWN; how many."""
        async with self._database.transaction() as tx:
            return await store.mark_orphans(tx, _SILENT)

    async def _sweep(self) -> None:
        if orphans := await self.sweep():
            _log.warning("audit.orphans", records=orphans)

    async def _beat(self) -> None:
        async with self._database.transaction() as tx:
            await store.alive(tx, self.epoch, self._process)

    async def _forget(self) -> None:
        async with self._database.transaction() as tx:
            await store.forget_requests(tx)

    async def _apart(self, entry: Entry) -> None:
        try:
            async with self._database.transaction() as tx:
                await self.record(tx, entry)
        except Exception as error:  # noqa: BLE001 -- the call has failed already and its own fault must reach the caller
            _LOST.labels(entry.class_).inc()
            _log.error("audit.lost", method=entry.method, outcome=entry.outcome.value, error=repr(error))
