"""DesiredStateService: what an agent fetches, and what it reports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from uuid import UUID

from google.protobuf import json_format

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs import log, pg
from libs.clock import Clock
from libs.faults import Unavailable
from libs.pg import Record, Tx
from libs.rpc.call import Call
from services.gateway.fleet import PROTOCOL_KEY, clusters_store, desired, health_store, removal, statuses
from services.gateway.tenancy import environments_store, messages, settle
from services.gateway.tenancy import events as tenancy_events

_log = log.get("services.gateway.fleet")
_State = wire.ObjectStatus.State
Interest = Callable[[str], Awaitable[Iterable[str]]]


_PAUSES = 2  # agents know what paused means from this version of the protocol on


class Paused(Unavailable):
    """An agent that knows no pausing asks for the state of a paused cluster."""

    reason = "PAUSED"


async def _no_interest(_uid: str) -> Iterable[str]:
    return ()


class DesiredStateService:
    """Serves agents; the cluster is that of the certificate.

    Args:
        clock: the time.
        interest: kinds that someone watches on a cluster (uid) beyond the base set, as `{resource}.{version}.{group}`.
        trust: hash of the CAs that the hub goes by.
    """

    def __init__(self, *, clock: Clock, interest: Interest = _no_interest, trust: str = "") -> None:
        self._trust = trust
        self._clock = clock
        self._interest = interest

    async def FetchDesiredState(self, request: wire.FetchDesiredStateRequest, call: Call) -> wire.FetchDesiredStateResponse:
        """The whole set, or that the agent is current; NotFound for a cluster that was removed."""
        tx = await pg.tx(call)
        uid = UUID(call.caller.id)
        known = await _head(tx, uid)
        paused = bool(await tx.value("SELECT paused FROM fleet.clusters WHERE uid = $1", uid))
        if paused and int(call.metadata.get(PROTOCOL_KEY, _PAUSES)) < _PAUSES:
            raise Paused("the cluster is paused, and its agent too old to be told so: it gets nothing new")
        reply = wire.FetchDesiredStateResponse(hub_uid=str(await tx.value("SELECT uid FROM fleet.hub")), ca_bundle_hash=self._trust)
        current = (known.generation, known.checksum) == (request.known_generation, request.known_checksum)
        if not (current and known.checksum):
            known = await _head(tx, uid, lock=True)
            objects = await desired.objects(tx, uid)
            checksum = known.checksum or desired.checksum(objects)
            if not known.checksum:
                await desired.seal(tx, uid, checksum)
            known = desired.Head(known.generation, checksum, known.confirmed_generation)
            current = (known.generation, checksum) == (request.known_generation, request.known_checksum)
            if not current:
                reply.objects.extend(_object(row) for row in objects)
                reply.tombstones.extend(_tombstone(row) for row in await desired.tombstones(tx, uid))
        reply.generation, reply.checksum, reply.unchanged = known.generation, known.checksum, current
        reply.confirmed_generation, reply.paused = known.confirmed_generation, paused
        return reply

    async def ReportStatus(self, request: wire.ReportStatusRequest, call: Call) -> wire.ReportStatusResponse:
        """Keeps what the cluster holds, and lets go of what it no longer does; NotFound for a cluster that was removed."""
        tx = await pg.tx(call)
        uid, now = UUID(call.caller.id), self._clock.now()
        reported = [obj for obj in request.objects if _is_uuid(obj.uid)]
        tombstones = await desired.tombstones(tx, uid)
        gone = _gone(request, reported, tombstones)
        environments = [row["uid"] for row in gone if row["kind"] == "Environment"]
        tenants = sorted({row["tenant"] for row in gone})
        for tenant in tenants:  # before anything else, in one order: others lock a tenant first too
            await tx.execute("SELECT 1 FROM tenancy.tenants WHERE name = $1 FOR UPDATE", tenant)
        await _head(tx, uid)
        await tx.execute(
            "UPDATE fleet.clusters SET seen = $2, joined = true, applied_generation = $3, confirmation_needed = $4 WHERE uid = $1",
            uid, now, request.applied_generation, request.confirmation_needed,
        )  # fmt: skip
        if request.HasField("local_policy"):
            await clusters_store.keep_policy(tx, uid, json_format.MessageToDict(request.local_policy))
        await _keep(tx, uid, request, reported, now)
        await statuses.forget(tx, uid, [(row["kind"], row["name"], row["uid"]) for row in gone])
        await desired.confirm_removals(tx, uid, gone)
        await statuses.ungrant(tx, environments)
        for environment in environments:
            await settle.environment_gone(tx, environment)
        for tenant in tenants:
            await settle.tenant(tx, tenant)
        if not (gone and await removal.settled(tx, uid)):
            await health_store.judge(tx, now, [uid])
        return wire.ReportStatusResponse()

    async def FetchInterest(self, request: wire.FetchInterestRequest, call: Call) -> wire.FetchInterestResponse:  # noqa: ARG002 -- empty
        """The kinds that someone watches."""
        return wire.FetchInterestResponse(resources=sorted(await self._interest(call.caller.id)))


async def _head(tx: Tx, uid: UUID, *, lock: bool = False) -> desired.Head:
    known = await desired.head(tx, uid, lock=lock)
    if known is None:
        raise clusters_store.missing(str(uid))
    return known


async def _keep(tx: Tx, uid: UUID, request: wire.ReportStatusRequest, reported: list[wire.ObjectStatus], now: datetime) -> None:
    """Keeps the statuses and tells of environments whose state is another than before."""
    present = [obj for obj in reported if obj.state != _State.REMOVED]
    before = await statuses.states(tx, uid)
    whole = request.full or request.HasField("part")
    await statuses.keep(tx, uid, present, now, full=whole)
    await statuses.grant(tx, uid, present)
    if whole:
        span = (request.part.after, request.part.until)
        await statuses.forget_others(tx, uid, [(obj.kind, obj.name) for obj in present], span=span)
    else:
        await statuses.forget(tx, uid, [(o.kind, o.name, UUID(o.uid)) for o in reported if o.state == _State.REMOVED])
    for obj in present:
        state = (obj.uid, _State.Name(obj.state))
        if obj.kind == "Environment" and before.get((obj.kind, obj.name)) != state:
            await _tell(tx, UUID(obj.uid))


async def _tell(tx: Tx, environment_uid: UUID) -> None:
    row = await environments_store.by_uid(tx, environment_uid)
    if row is not None:
        await tenancy_events.publish(tx, "environment-reported", messages.environment(row, full=True))


def _gone(request: wire.ReportStatusRequest, reported: list[wire.ObjectStatus], tombstones: list[Record]) -> list[Record]:
    """The tombstones that the report confirms: said to be removed, or absent where a report of that generation or later is whole."""
    said = {(o.kind, o.name, o.uid): o for o in reported}
    found = []
    for row in tombstones:
        obj = said.get((row["kind"], row["name"], str(row["uid"])))
        reached = request.applied_generation >= row["generation"]
        if obj is None:
            confirmed = _covers(request, row) and reached
        else:
            confirmed = obj.state == _State.REMOVED and (reached or obj.generation >= row["generation"])
        if confirmed:
            found.append(row)
    return found


def _covers(request: wire.ReportStatusRequest, row: Record) -> bool:
    """Whether the report tells of all that there is where an object would stand."""
    if not request.HasField("part"):
        return request.full
    at = f"{row['kind']}/{row['name']}"
    return at > request.part.after and (not request.part.until or at <= request.part.until)


def _object(row: Record) -> wire.DesiredObject:
    return wire.DesiredObject(
        kind=row["kind"], name=row["name"], uid=str(row["uid"]), generation=row["generation"], manifest=row["manifest"],
        traceparent=row["traceparent"],
    )  # fmt: skip


def _tombstone(row: Record) -> wire.Tombstone:
    return wire.Tombstone(
        kind=row["kind"], name=row["name"], uid=str(row["uid"]), generation=row["generation"], traceparent=row["traceparent"]
    )


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        _log.warning("status.without_uid", uid=text)
        return False
    return True
