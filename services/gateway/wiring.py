"""Each domain of the gateway put together by one small function; `app.py` calls them in order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FileDescriptor

from kubegems.agent.v1 import desired_state_service_pb2
from kubegems.audit.v1 import audit_service_pb2
from kubegems.fleet.v1 import (
    cluster_access_service_pb2,
    cluster_service_pb2,
    enrolment_service_pb2,
    events_pb2,
    join_token_service_pb2,
    upkeep_service_pb2,
)
from kubegems.identity.v1 import (
    access_service_pb2,
    api_key_service_pb2,
    service_account_service_pb2,
    session_service_pb2,
    user_service_pb2,
)
from kubegems.jobs.v1 import job_service_pb2, queue_service_pb2, schedule_service_pb2
from kubegems.messages.v1 import announcement_service_pb2, inbox_service_pb2, message_service_pb2
from kubegems.tenancy.v1 import (
    environment_service_pb2,
    member_service_pb2,
    project_service_pb2,
    quota_service_pb2,
    tenant_service_pb2,
)
from libs import audit, rpc
from libs.audit import Auditor, PgUnits
from libs.bus import Bus, subjects
from libs.bus.relay import Relay
from libs.clock import Clock
from libs.crypt.box import Box
from libs.crypt.ca import Authority, bundle_hash
from libs.crypt.signing import SigningKey
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from libs.rpc import Channel, Method, Pipeline
from libs.rpc.forward import forward
from libs.run import Life
from libs.tunnel.tcp import client_tls
from services.gateway.audit.api import AuditService
from services.gateway.broker import Streams
from services.gateway.config import Config
from services.gateway.edge.kubernetes_access import KubernetesAccess
from services.gateway.edge.limits import Limits
from services.gateway.fleet.access_api import ClusterAccessService
from services.gateway.fleet.certificates_store import Certificates
from services.gateway.fleet.clusters_api import ClusterService
from services.gateway.fleet.desired_api import DesiredStateService
from services.gateway.fleet.enrolment_api import EnrolmentService
from services.gateway.fleet.health_keeper import HealthKeeper
from services.gateway.fleet.hints import Hints
from services.gateway.fleet.interest import Interests
from services.gateway.fleet.join_tokens_api import JoinTokenService
from services.gateway.fleet.joining import Joining
from services.gateway.fleet.links import LinkKeeper
from services.gateway.fleet.upkeep_api import UpkeepService
from services.gateway.fleet.version import VERSION
from services.gateway.identity import app as identity_app
from services.gateway.identity.app import Identity
from services.gateway.identity.bootstrap import bootstrap_admin
from services.gateway.identity.rights import known_permissions
from services.gateway.link.kubernetes_edge import KubernetesEdge
from services.gateway.link.links import Links
from services.gateway.link.nats_auth import NatsAuth
from services.gateway.link.peers import Peers
from services.gateway.link.presence import Presence
from services.gateway.tenancy.environments_api import EnvironmentService
from services.gateway.tenancy.members_api import MemberService
from services.gateway.tenancy.projects_api import ProjectService
from services.gateway.tenancy.quotas_api import QuotaService
from services.gateway.tenancy.tenants_api import TenantService

_HERE = Path(__file__).parent
OUTBOXES = ("identity", "tenancy", "fleet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What every domain stands on."""

    config: Config
    life: Life
    clock: Clock
    database: Database
    auditor: Auditor
    units: PgUnits
    bus: Bus
    pages: Pages
    box: Box
    authority: Authority
    tls: rpc.Tls
    limits: Limits


async def migrated(database: Database) -> None:
    """Brings all schemas of the gateway up to date, owners before those that refer to them."""
    await audit.prepare(database)
    await identity_app.prepare(database)
    for schema in ("fleet", "tenancy"):
        await migrate(database, schema, _HERE / schema / "migrations")


async def identity(base: Base) -> Identity:
    """Users, sessions, rights; and the first admin."""
    made = await identity_app.start(base.life, database=base.database, box=base.box, pages=base.pages, clock=base.clock)
    if base.config.admin_password_file is not None:
        await bootstrap_admin(
            base.database, base.config.admin_password_file, passwords=made.passwords, auditor=base.auditor, clock=base.clock
        )
    return made


def identity_methods(made: Identity) -> list[Method]:
    """RPCs of identity."""
    return [
        *_served(user_service_pb2.DESCRIPTOR, made.users),
        *_served(session_service_pb2.DESCRIPTOR, made.sessions),
        *_served(access_service_pb2.DESCRIPTOR, made.access),
        *_served(api_key_service_pb2.DESCRIPTOR, made.api_keys),
        *_served(service_account_service_pb2.DESCRIPTOR, made.service_accounts),
    ]


def tenancy_methods(base: Base) -> list[Method]:
    """RPCs of tenancy."""
    return [
        *_served(tenant_service_pb2.DESCRIPTOR, TenantService(base.pages)),
        *_served(project_service_pb2.DESCRIPTOR, ProjectService(base.pages)),
        *_served(environment_service_pb2.DESCRIPTOR, EnvironmentService(base.pages)),
        *_served(member_service_pb2.DESCRIPTOR, MemberService(base.pages)),
        *_served(quota_service_pb2.DESCRIPTOR, QuotaService(base.pages)),
    ]


def audit_methods(base: Base) -> list[Method]:
    """RPCs of audit."""
    return _served(audit_service_pb2.DESCRIPTOR, AuditService(base.pages))


async def links(base: Base, streams: Streams) -> Links:
    """The tunnels; agents ask for their desired state through them."""
    trust = bundle_hash(base.authority.bundle)
    desired = DesiredStateService(clock=base.clock, interest=Interests(base.database).wanted, trust=trust)
    methods = _served(desired_state_service_pb2.DESCRIPTOR, desired)
    hub_uid = await _hub_uid(base.database)
    presence = Presence(base.bus, base.config.peer_address or base.config.tunnel_address)
    peers = Peers(presence, lambda: client_tls(base.config.certificate_file, base.config.key_file, base.config.ca_file), hub_uid=hub_uid)
    keeper = LinkKeeper(base.database, base.clock, presence.replica, on_forgotten=lambda: made.tell())  # noqa: PLW0108 -- made below
    await keeper.start()

    async def changed(uid: str, online: bool, agent: str, number: int) -> None:  # noqa: FBT001 -- the tunnel's callback
        streams.wake()
        await keeper.changed(uid, online, agent, number)

    made = Links(
        hub_uid=hub_uid, version=VERSION, pipeline=Pipeline(methods, units=base.units, audit=base.auditor),
        allowed=Certificates(base.database).allowed, on_change=changed, clock=base.clock, number=keeper.number, peers=peers,
        broker=base.config.nats_url.rpartition("//")[2],
    )  # fmt: skip
    base.life.stack.push_async_callback(keeper.leave)
    base.life.spawn("gateways", keeper.run())
    base.life.stack.push_async_callback(presence.close)
    base.life.spawn("tunnels", presence.run())
    base.life.stack.push_async_callback(made.close)
    return made


def fleet_methods(base: Base, identity_: Identity, links_: Links, nats: NatsAuth) -> list[Method]:
    """RPCs of fleet: clusters, joining, and the inner services' road to clusters."""
    joining = _joining(base)

    def kubeconfig_token(caller: rpc.Caller, cluster_uid: str, lifetime: timedelta | None) -> Any:
        return identity_.authenticator.kubeconfig_token(caller, cluster_uid, lifetime)

    async def removed(uid: str) -> None:
        links_.disconnect(uid, "the cluster was removed")
        await nats.revoke(uid)

    clusters = ClusterService(
        base.pages, joining=joining, kubeconfig_token=kubeconfig_token, on_removed=removed, links=links_, clock=base.clock
    )
    tokens = JoinTokenService(base.pages, joining=joining, authority=base.authority, clock=base.clock)
    access = ClusterAccessService(database=base.database, links=links_, principal=identity_.principals.principal)
    enrolment = EnrolmentService(authority=base.authority, joining=joining, clock=base.clock)
    return [
        *_served(cluster_service_pb2.DESCRIPTOR, clusters),
        *_served(join_token_service_pb2.DESCRIPTOR, tokens),
        *_served(cluster_access_service_pb2.DESCRIPTOR, access),
        *_served(upkeep_service_pb2.DESCRIPTOR, UpkeepService(database=base.database, links=links_)),
        *_served(enrolment_service_pb2.DESCRIPTOR, enrolment),
    ]


def health(base: Base, links_: Links, streams: Streams, nats: NatsAuth) -> HealthKeeper:
    """Looks after the clusters' health, and has what was revoked put out."""

    def removed() -> None:
        streams.wake()
        nats.wake()

    return HealthKeeper(base.database, links_, base.clock, on_removed=removed)


def hints(base: Base, links_: Links) -> Hints:
    """Tells agents over NATS that there is something to fetch."""

    async def send(uid: str, generation: int) -> None:
        await base.bus.hint(subjects.desired(uid), events_pb2.DesiredStateHint(generation=generation))

    return Hints(base.database, send, here=links_.here)


def nats_auth(base: Base) -> NatsAuth:
    """Answers whom the broker may let in."""
    config = base.config
    files = (config.certificate_file, config.key_file, config.ca_file)
    return NatsAuth(config.nats_url, files, config.nats_seed_file.parent, Certificates(base.database).refused)


def kubernetes_edge(base: Base, identity_: Identity, links_: Links) -> KubernetesEdge:
    """`/k8s`."""
    access = KubernetesAccess(identity_, base.database)
    return KubernetesEdge(links_, access, base.auditor, limit=base.limits.of_address)


def forwarded_methods(base: Base, identity_: Identity) -> list[Method]:
    """RPCs that msgbus and the worker answer."""
    made: list[Method] = []

    def key() -> SigningKey:
        return identity_.caller_keys.signing

    for name, address, files in (
        (
            "msgbus",
            base.config.msgbus_address,
            (message_service_pb2.DESCRIPTOR, inbox_service_pb2.DESCRIPTOR, announcement_service_pb2.DESCRIPTOR),
        ),
        ("worker", base.config.worker_address, (job_service_pb2.DESCRIPTOR, schedule_service_pb2.DESCRIPTOR, queue_service_pb2.DESCRIPTOR)),
    ):
        channel = Channel(address, name, base.tls)
        base.life.stack.push_async_callback(channel.close)
        for file in files:
            for service in file.services_by_name.values():
                made += forward(service, channel, key, base.clock, known_permissions=known_permissions())
    return made


def relay(base: Base) -> Relay:
    """Publishes what the domains wrote into their outboxes."""
    return Relay(base.database, base.bus, OUTBOXES)


def _served(file: FileDescriptor, servicer: object) -> list[Method]:
    (service,) = file.services_by_name.values()
    return rpc.methods(service, servicer, known_permissions=known_permissions())


def _joining(base: Base) -> Joining:
    config = base.config
    nats = config.nats_url.rpartition("//")[2]
    return Joining(
        enrolment_address=config.public_enrolment_address or config.enrolment_address,
        tunnel_address=config.public_tunnel_address or config.tunnel_address,
        nats_address=config.public_nats_address or nats,
        edge_url=config.public_url,
        ca=base.authority.bundle,
        certificate_lifetime=timedelta(hours=config.certificate_hours),
        agent_image=config.agent_image,
    )


async def _hub_uid(database: Database) -> str:
    async with database.transaction(readonly=True) as tx:
        return str(await tx.value("SELECT uid FROM fleet.hub"))
