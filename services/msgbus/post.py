"""Post: turns events into messages in inboxes, each once by its outbox id, and tells all replicas to deliver them live."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Collection
from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.message import DecodeError

from kubegems.jobs.v1.events_pb2 import JobMoved
from kubegems.messages.v1 import events_pb2, inbox_pb2
from libs import log
from libs.bus import Bus, Received, Rejected, streams, subjects
from libs.faults import Fault
from libs.pg import Database, Record, Tx, outbox
from services.msgbus import inbox_store as store
from services.msgbus.wash import escaped

Severity = inbox_pb2.InboxMessage.Severity
DURABLE = "msgbus-post"
_SECOND = 1.0
_SWEEP_SECONDS = 600.0
_MOST_AUDIENCES = 64
_TIMED = 7  # UUIDv7 carries its time
_ENDED = {"SUCCEEDED": Severity.INFO, "FAILED": Severity.ERROR, "DEAD": Severity.ERROR, "CANCELLED": Severity.WARNING}
_AUDIENCE = re.compile(
    r"platform(/roles/[a-z]+)?|users/[^/\s]{1,63}|tenants/[^/\s]+(/projects/[^/\s]+(/environments/[^/\s]+)?)?(/roles/[a-z]+)?"
)
_log = log.get("services.msgbus")


class Post:
    """Works off the NOTICES stream; replicas share the work.

    Args:
        bus: where events come from.
        database: where messages are kept.
        retention_days: how long.
    """

    def __init__(self, bus: Bus, database: Database, *, retention_days: int) -> None:
        self._bus, self._database, self._days = bus, database, retention_days

    async def run(self) -> None:
        """Until cancelled."""
        lanes = (subjects.notice("posted"), subjects.notice("jobs"))
        await self._bus.consume(streams.NOTICES.name, self.handle, durable=DURABLE, subjects=lanes)

    async def handle(self, received: Received) -> None:
        """Stores what one event asks for; Rejected for what can never be stored."""
        try:
            id_ = UUID(received.id)
            if received.subject == subjects.notice("jobs"):
                posted = of_job(received.parse(JobMoved))
            else:
                posted = received.parse(events_pb2.NoticePosted)
        except (ValueError, DecodeError) as error:
            raise Rejected(str(error)) from error
        if posted is None:
            return
        if not posted.audiences or not all(_AUDIENCE.fullmatch(a) for a in posted.audiences):
            raise Rejected(f"no audience, or one that cannot be: {list(posted.audiences)[:3]}")
        async with self._database.transaction() as tx:
            await post(tx, id_, posted, _written(id_))

    async def announce(self) -> None:
        """Delivers announcements when their time begins, and forgets what is old; until cancelled."""
        loop = asyncio.get_running_loop()
        swept = loop.time() - _SWEEP_SECONDS * random.random()  # noqa: S311 -- spreads replicas
        while True:
            try:
                async with self._database.transaction() as tx:
                    for row in await store.begun(tx):
                        if row["shown"]:
                            await post(tx, row["id"], _announced(row), datetime.now(UTC))
                if loop.time() - swept > _SWEEP_SECONDS:
                    swept = loop.time()
                    async with self._database.transaction() as tx:
                        await store.sweep(tx, self._days)
            except (Fault, OSError) as error:
                _log.warning("announcements.not_read", error=str(error))
            await asyncio.sleep(_SECOND * random.uniform(0.8, 1.2))  # noqa: S311 -- jitter


async def post(tx: Tx, id_: UUID, posted: events_pb2.NoticePosted, now: datetime) -> bool:
    """Stores a message and, in the same transaction, the event that delivers it; False when it was stored before."""
    audiences: Collection[str] = sorted(set(posted.audiences))[:_MOST_AUDIENCES]
    severity = posted.severity or Severity.INFO
    title, body = escaped(posted.title, 200), posted.body[:8000]
    if not await store.add(tx, id_, audiences, (Severity.Name(severity), posted.category, title, body, posted.resource), now):
        return False
    message = inbox_pb2.InboxMessage(
        severity=severity, category=posted.category, title=title, body=body, resource=posted.resource, audience=next(iter(audiences))
    )
    message.create_time.FromDatetime(now)
    stored = events_pb2.NoticeStored(id=str(id_), message=message, audiences=audiences)
    await outbox.publish(tx, store.SCHEMA, subjects.notice("stored"), stored)
    return True


def _written(id_: UUID) -> datetime:
    """When an event was written, by its UUIDv7: replicas share the work, so the time of storing keeps no order."""
    now = datetime.now(UTC)
    return min(now, datetime.fromtimestamp((id_.int >> 80) / 1000, UTC)) if id_.version == _TIMED else now


def of_job(moved: JobMoved) -> events_pb2.NoticePosted | None:
    """The message that the end of a user's job is worth; None for a job that goes on, and for one that nobody started by hand."""
    severity = _ENDED.get(moved.state)
    if severity is None or not moved.creator.startswith("users/"):
        return None
    title = f"{moved.name} on {moved.target or 'the platform'}: {moved.state.lower()}"
    return events_pb2.NoticePosted(
        audiences=[moved.creator], severity=severity, category=f"JOB_{moved.state}", title=title, body=moved.message, resource=moved.name
    )


def _announced(values: Record) -> events_pb2.NoticePosted:
    return events_pb2.NoticePosted(
        audiences=values["audiences"], severity=Severity.Value(values["severity"]), category="ANNOUNCEMENT",
        title=values["title"], body=values["body"], resource=f"announcements/{values['id']}",
    )  # fmt: skip
