"""Keeps what is known of clusters' health, and tells when it changes: `gems.platform.fleet.cluster-changed`, and audit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from kubegems.fleet.v1 import cluster_pb2, events_pb2
from libs.audit import Entry, store
from libs.bus import subjects
from libs.clock import new_id
from libs.pg import Record, Tx, outbox
from services.gateway.fleet import health, messages
from services.gateway.fleet.health import Facts
from services.gateway.fleet.version import VERSION

_SCHEMA = "fleet"
_PROCESS = new_id()  # of the records; it matters to those alone that are still to end
_FACTS = (
    "SELECT c.uid, c.name, c.online, c.leaving, c.joined, c.seen, c.told_state, c.told_reasons, c.better_since, c.reasons,"
    " c.confirmation_needed, c.agent_version, c.round_trip, c.clock_skew,"
    " c.flapping_until, c.inventory, newest.issued, newest.expires,"
    " (SELECT count(*) FROM fleet.statuses s WHERE s.cluster_uid = c.uid AND s.state = 'FAILED') AS failed"
    " FROM fleet.clusters c LEFT JOIN LATERAL (SELECT t.issued, t.expires FROM fleet.certificates t"
    " WHERE t.cluster_uid = c.uid AND t.revoked IS NULL ORDER BY t.issued DESC LIMIT 1) newest ON true"
)


@dataclass(frozen=True, slots=True)
class Measure:
    """What a tunnel tells of itself.

    Attributes:
        round_trip: seconds.
        clock_skew: seconds that the cluster is ahead.
        heard: seconds since something came.
        flapping: two agents push each other out.
    """

    round_trip: float
    clock_skew: float
    heard: float
    flapping: bool = False


async def measured(tx: Tx, measures: Mapping[str, Measure], now: datetime) -> None:
    """Keeps measures of connected clusters; small changes only now and then, so that a quiet fleet writes little."""
    rows = [(UUID(uid), m.round_trip, m.clock_skew, m.heard, m.flapping) for uid, m in sorted(measures.items())]
    columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[], [], [], [], []]
    await tx.execute(
        "UPDATE fleet.clusters c SET round_trip = m.round_trip, clock_skew = m.clock_skew,"
        " seen = $6::timestamptz - make_interval(secs => m.heard),"
        " flapping_until = CASE WHEN m.flapping THEN $6::timestamptz + interval '5 minutes' ELSE c.flapping_until END"
        " FROM unnest($1::uuid[], $2::float8[], $3::float8[], $4::float8[], $5::bool[]) AS m (uid, round_trip, clock_skew, heard, flapping)"
        " WHERE c.uid = m.uid AND (c.seen IS NULL OR c.seen < $6::timestamptz - interval '30 seconds' OR c.round_trip IS NULL OR m.flapping"
        " OR abs(c.round_trip - m.round_trip) > 0.2 OR abs(c.clock_skew - m.clock_skew) > 10)",
        *columns, now,
    )  # fmt: skip


async def judge(tx: Tx, now: datetime, uids: Collection[UUID] | None = None) -> int:
    """Finds out what is wrong with clusters (all when none are named) and tells of those that changed; how many did."""
    if uids is None:
        rows = await tx.rows(f"{_FACTS} ORDER BY c.uid")
    else:
        rows = await tx.rows(f"{_FACTS} WHERE c.uid = ANY($1::uuid[]) ORDER BY c.uid", sorted(uids))
    return sum([await _judge(tx, row, now) for row in rows])


async def removed(tx: Tx, name: str, uid: UUID, previous: str) -> None:
    """Tells that a cluster is no longer known."""
    await outbox.publish(
        tx, _SCHEMA, subjects.platform("fleet", "cluster-changed"),
        events_pb2.ClusterHealthChanged(
            cluster=f"clusters/{name}", uid=str(uid), state=cluster_pb2.Cluster.DELETING,
            previous_state=cluster_pb2.Cluster.State.Value(previous), removed=True,
        ),
    )  # fmt: skip
    await _record(tx, name, {"uid": str(uid), "previous_state": previous, "state": "REMOVED", "reasons": []})


async def _judge(tx: Tx, row: Record, now: datetime) -> bool:
    found = list(health.problems(_facts(row, now), now)) if row["online"] else []
    reasons = health.merged(found, row["reasons"], now)
    told = [{"reason": reason, "message": message} for reason, message in found]
    state = health.state(
        leaving=row["leaving"], online=row["online"], seen=row["seen"] is not None, joined=row["joined"], wrong=bool(found)
    )  # fmt: skip
    better = health.better(row["told_state"], [kept["reason"] for kept in row["told_reasons"]], state, [reason for reason, _ in found])
    since = min(row["better_since"] or now, now) if better else None
    if since is not None and now - since < health.HOLD:
        await _keep(tx, row, (reasons, row["told_state"], row["told_reasons"], since))
        return False
    if not await _keep(tx, row, (reasons, state, told, None)) or (state, told) == (row["told_state"], row["told_reasons"]):
        return False
    await _tell(tx, row, state, reasons)
    return True


async def _keep(tx: Tx, row: Record, new: tuple[Any, ...]) -> bool:
    """Keeps what was found; False when the cluster is another than was judged: whoever changed it judges it."""
    if new == (row["reasons"], row["told_state"], row["told_reasons"], row["better_since"]):
        return True
    return bool(
        await tx.execute(
            "UPDATE fleet.clusters SET reasons = $2, told_state = $3, told_reasons = $4, better_since = $5"
            " WHERE uid = $1 AND reasons = $6 AND told_state = $7 AND told_reasons = $8 AND online = $9 AND leaving = $10 AND joined = $11",
            row["uid"], *new, row["reasons"], row["told_state"], row["told_reasons"], row["online"], row["leaving"], row["joined"],
        )
    )  # fmt: skip


async def _tell(tx: Tx, row: Record, state: str, reasons: Collection[Mapping[str, str]]) -> None:
    """Tells of a change; one of the state leaves a record too."""
    numbers = cluster_pb2.Cluster.State
    event = events_pb2.ClusterHealthChanged(
        cluster=f"clusters/{row['name']}", uid=str(row["uid"]), state=numbers.Value(state),
        previous_state=numbers.Value(row["told_state"] or "STATE_UNSPECIFIED"), reasons=[messages.reason(kept) for kept in reasons],
    )  # fmt: skip
    await outbox.publish(tx, _SCHEMA, subjects.platform("fleet", "cluster-changed"), event)
    if state != row["told_state"]:
        names = [kept["reason"] for kept in reasons]
        await _record(
            tx, row["name"], {"uid": str(row["uid"]), "previous_state": row["told_state"], "state": state, "reasons": names}
        )  # fmt: skip


async def _record(tx: Tx, name: str, told: dict[str, Any]) -> None:
    """Leaves a record of a change of state, which the platform itself saw."""
    resources = [f"clusters/{name}"]
    entry = Entry(method="fleet/health", class_="WRITE", actor="services/gateway", resources=resources, request=told)
    await store.insert(tx, _PROCESS, entry)


def _facts(row: Record, now: datetime) -> Facts:
    counted = messages.inventory(row["inventory"])
    return Facts(
        confirmation_needed=row["confirmation_needed"], failed=row["failed"],
        nodes=counted.nodes if counted else 0, ready_nodes=counted.ready_nodes if counted else 0,
        issued=row["issued"], expires=row["expires"], round_trip=row["round_trip"], clock_skew=row["clock_skew"],
        agent=row["agent_version"], hub=VERSION, flapping=bool(row["flapping_until"] and row["flapping_until"] > now),
    )  # fmt: skip
