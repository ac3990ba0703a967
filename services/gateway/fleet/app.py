"""Puts fleet together. The tunnel stands between: it serves `agents`, and `access` is served over it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from kubegems.agent.v1 import desired_state_service_pb2
from kubegems.fleet.v1 import cluster_access_service_pb2, cluster_service_pb2, enrolment_service_pb2, join_token_service_pb2
from libs.clock import Clock
from libs.crypt.ca import Authority
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from libs.run import Life
from services.gateway.fleet.access_api import ClusterAccessService, Links
from services.gateway.fleet.certificates_store import Certificates
from services.gateway.fleet.clusters_api import ClusterService, TokenIssuer
from services.gateway.fleet.desired_api import DesiredStateService
from services.gateway.fleet.enrolment_api import EnrolmentService
from services.gateway.fleet.hints import Hints, Send
from services.gateway.fleet.join_tokens_api import JoinTokenService
from services.gateway.fleet.joining import Joining
from services.gateway.fleet.links import LinkKeeper

SCHEMA = "fleet"
Services = list[tuple[ServiceDescriptor, object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What other parts of the gateway use of fleet.

    Attributes:
        hub_uid: uid of this hub, which agents keep.
        users: served to users: ClusterService, JoinTokenService.
        joiners: served on the enrolment listener: EnrolmentService.
        agents: served over the tunnel: DesiredStateService.
        certificates: `allowed(uid, serial)` for the doors of tunnel and NATS.
        link_keeper: `changed(uid, online, version)` for the tunnel's changes.
    """

    hub_uid: str
    users: Services
    joiners: Services
    agents: Services
    certificates: Certificates
    link_keeper: LinkKeeper


async def prepare(database: Database) -> None:
    """Brings schema `fleet` up to date."""
    await migrate(database, SCHEMA, Path(__file__).parent / "migrations")


async def start(
    life: Life, *, database: Database, pages: Pages, clock: Clock, authority: Authority, joining: Joining,
    kubeconfig_token: TokenIssuer, send_hint: Send, on_removed: Callable[[str], Awaitable[None] | None],
) -> Fleet:  # fmt: skip
    """Starts fleet, with every cluster offline; the schemas `identity`, `tenancy` and `fleet` must be up to date.

    Args:
        life: owns the task that sends hints.
        database: the gateway's.
        pages: page tokens.
        clock: the time.
        authority: the hub's CA.
        joining: where the hub is, as agents and users see it.
        kubeconfig_token: makes a token for `/k8s`, for a caller, a cluster's uid and a lifetime.
        send_hint: publishes DesiredStateHint(generation) on `gems.desired.<uid>`.
        on_removed: cuts the links of a removed cluster, by uid.
    """
    keeper = LinkKeeper(database, clock)
    await keeper.start()
    async with database.transaction(readonly=True) as tx:
        hub_uid = str(await tx.value("SELECT uid FROM fleet.hub"))
    life.spawn("desired state hints", Hints(database, send_hint).run())
    clusters = ClusterService(pages, joining=joining, kubeconfig_token=kubeconfig_token, on_removed=on_removed)
    tokens = JoinTokenService(pages, joining=joining, authority=authority, clock=clock)
    enrolment = EnrolmentService(authority=authority, joining=joining, clock=clock)
    desired_state = desired_state_service_pb2.DESCRIPTOR.services_by_name["DesiredStateService"]
    return Fleet(
        hub_uid=hub_uid,
        users=[
            (cluster_service_pb2.DESCRIPTOR.services_by_name["ClusterService"], clusters),
            (join_token_service_pb2.DESCRIPTOR.services_by_name["JoinTokenService"], tokens),
        ],
        joiners=[(enrolment_service_pb2.DESCRIPTOR.services_by_name["EnrolmentService"], enrolment)],
        agents=[(desired_state, DesiredStateService(clock=clock))],
        certificates=Certificates(database),
        link_keeper=keeper,
    )


def access(database: Database, links: Links, principal: Callable[[str, str], Awaitable[Any]]) -> Services:
    """What is served to hub services once the tunnel's registry stands: ClusterAccessService."""
    service = cluster_access_service_pb2.DESCRIPTOR.services_by_name["ClusterAccessService"]
    return [(service, ClusterAccessService(database=database, links=links, principal=principal))]
