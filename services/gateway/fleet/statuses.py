"""What agents last reported of each object."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from kubegems.agent.v1 import desired_state_service_pb2
from libs.pg import Tx

ObjectStatus = desired_state_service_pb2.ObjectStatus


async def keep(tx: Tx, cluster_uid: UUID, objects: Iterable[ObjectStatus], now: datetime, *, full: bool) -> None:
    """Keeps what was reported, unless something newer is kept already; a full report is the truth in any case."""
    await tx.many(
        "INSERT INTO fleet.statuses AS s"
        " (cluster_uid, kind, name, uid, generation, state, reason, message, conditions, used, hard, reported)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (cluster_uid, kind, name) DO UPDATE SET"
        " uid = excluded.uid, generation = excluded.generation, state = excluded.state, reason = excluded.reason,"
        " message = excluded.message, conditions = excluded.conditions, used = excluded.used, hard = excluded.hard,"
        " reported = excluded.reported WHERE s.uid <> excluded.uid OR s.generation <= excluded.generation"
        " OR excluded.state = 'REMOVING' OR $13",
        [(*_row(cluster_uid, obj, now), full) for obj in objects],
    )


async def forget(tx: Tx, cluster_uid: UUID, objects: Iterable[tuple[str, str, UUID]]) -> None:
    """Forgets objects, given as kind, name and uid."""
    await tx.many(
        "DELETE FROM fleet.statuses WHERE cluster_uid = $1 AND kind = $2 AND name = $3 AND uid = $4",
        [(cluster_uid, *obj) for obj in objects],
    )


async def forget_others(tx: Tx, cluster_uid: UUID, kept: Iterable[tuple[str, str]], *, span: tuple[str, str] = ("", "")) -> None:
    """Forgets what is not among the kinds and names of a report that is whole after and up to `kind/name`; empty: no end there."""
    pairs = list(kept)
    await tx.execute(
        "DELETE FROM fleet.statuses s WHERE s.cluster_uid = $1"
        """ AND (s.kind || '/' || s.name) COLLATE "C" > $4 AND ($5 = '' OR (s.kind || '/' || s.name) COLLATE "C" <= $5) AND NOT EXISTS"""
        " (SELECT 1 FROM unnest($2::text[], $3::text[]) AS k (kind, name) WHERE k.kind = s.kind AND k.name = s.name)",
        cluster_uid, [kind for kind, _ in pairs], [name for _, name in pairs], *span,
    )  # fmt: skip


async def states(tx: Tx, cluster_uid: UUID) -> dict[tuple[str, str], tuple[str, str]]:
    """Uid and state of each object by kind and name."""
    rows = await tx.rows("SELECT kind, name, uid, state FROM fleet.statuses WHERE cluster_uid = $1", cluster_uid)
    return {(row["kind"], row["name"]): (str(row["uid"]), row["state"]) for row in rows}


async def grant(tx: Tx, cluster_uid: UUID, objects: Iterable[ObjectStatus]) -> None:
    """Keeps for good of which environments the cluster says that their groups may be acted with."""
    found = [UUID(obj.uid) for obj in objects if obj.kind == "Environment" and any(map(_granted, obj.conditions))]
    if found:
        await tx.execute(
            "INSERT INTO fleet.granted (environment_uid, cluster_uid) SELECT new.uid, $1 FROM unnest($2::uuid[]) AS new (uid)"
            " WHERE NOT EXISTS (SELECT 1 FROM fleet.granted g WHERE g.environment_uid = new.uid) ON CONFLICT DO NOTHING",
            cluster_uid, found,
        )  # fmt: skip


async def ungrant(tx: Tx, environments: Iterable[UUID]) -> None:
    """Forgets that of environments that are gone."""
    await tx.execute("DELETE FROM fleet.granted WHERE environment_uid = ANY($1::uuid[])", list(environments))


def _granted(condition: ObjectStatus.Condition) -> bool:
    return bool(condition.type == "RightsReady" and condition.status == "True")


def _row(cluster_uid: UUID, obj: ObjectStatus, now: datetime) -> tuple[Any, ...]:
    return (
        cluster_uid, obj.kind, obj.name, UUID(obj.uid), obj.generation, ObjectStatus.State.Name(obj.state), obj.reason, obj.message,
        [_condition(c) for c in obj.conditions], dict(obj.used), dict(obj.hard), now,
    )  # fmt: skip


def _condition(condition: ObjectStatus.Condition) -> dict[str, str]:
    found = {"type": condition.type, "status": condition.status, "reason": condition.reason, "message": condition.message}
    if condition.HasField("transition_time"):
        found["time"] = condition.transition_time.ToJsonString()
    return found
