"""Rows of fleet as messages."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import json_format

from kubegems.fleet.v1 import cluster_pb2, join_token_pb2
from libs import pg
from services.gateway.fleet import health
from services.gateway.fleet.version import VERSION
from services.gateway.tenancy.domain.rows import Row


def cluster(row: Row, *, full: bool) -> cluster_pb2.Cluster:
    """A cluster; without `full` only name, state and Kubernetes version."""
    message = cluster_pb2.Cluster(
        name=f"clusters/{row['name']}", display_name=row["display_name"], state=cluster_pb2.Cluster.State.Value(row["state"])
    )
    counted = inventory(row["inventory"])
    if not full:
        if counted:
            message.inventory.kubernetes_version = counted.kubernetes_version
        return message
    message.uid = str(row["uid"])
    message.agent_version = row["agent_version"]
    message.desired_generation = row["desired_generation"]
    message.applied_generation = row["applied_generation"]
    message.confirmation_needed = row["confirmation_needed"]
    message.etag = pg.etag(row["version"])
    message.create_time.FromDatetime(row["created"])
    message.update_time.FromDatetime(row["updated"])
    if counted:
        message.inventory.CopyFrom(counted)
    if row["seen"]:
        message.seen_time.FromDatetime(row["seen"])
    _health(message, row)
    return message


def _health(message: cluster_pb2.Cluster, row: Row) -> None:
    message.paused = row["paused"]
    message.agent_version_skew = health.skew(row["agent_version"], VERSION)
    message.reasons.extend(reason(kept) for kept in (row["reasons"] if row["online"] else ()))
    if row["local_policy"] is not None:
        message.local_policy.SetInParent()
        json_format.ParseDict(dict(row["local_policy"]), message.local_policy, ignore_unknown_fields=True)
    if row["certificate_expires"]:
        message.certificate_expire_time.FromDatetime(row["certificate_expires"])
    if row["round_trip"] is not None:
        message.round_trip.FromTimedelta(timedelta(seconds=row["round_trip"]))
        message.clock_skew.FromTimedelta(timedelta(seconds=row["clock_skew"]))


def reason(kept: Mapping[str, str]) -> cluster_pb2.Cluster.Reason:
    """One thing that is wrong, as it was kept."""
    message = cluster_pb2.Cluster.Reason(reason=kept["reason"], message=kept["message"])
    message.since_time.FromDatetime(datetime.fromisoformat(kept["since"]))
    return message


def inventory(kept: Mapping[str, Any] | None) -> cluster_pb2.Inventory | None:
    """The inventory that was kept as JSON."""
    return json_format.ParseDict(dict(kept), cluster_pb2.Inventory(), ignore_unknown_fields=True) if kept else None


def join_token(cluster_: str, row: Row, state: str) -> join_token_pb2.JoinToken:
    """A join token without its secret."""
    message = join_token_pb2.JoinToken(
        name=f"clusters/{cluster_}/joinTokens/{row['id']}", state=join_token_pb2.JoinToken.State.Value(state)
    )
    message.create_time.FromDatetime(row["created"])
    message.expire_time.FromDatetime(row["expires"])
    if row["used"]:
        message.use_time.FromDatetime(row["used"])
    return message
