"""Tenancy and fleet over a real PostgreSQL, reached through the pipeline as any caller reaches them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import orjson
import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import desired_state_service_pb2 as desired_pb
from kubegems.fleet.v1 import (
    cluster_access_service_pb2,
    cluster_service_pb2,
    enrolment_service_pb2,
    join_token_service_pb2,
    upkeep_service_pb2,
)
from kubegems.tenancy.v1 import (
    environment_pb2,
    environment_service_pb2,
    member_pb2,
    member_service_pb2,
    project_pb2,
    project_service_pb2,
    quota_pb2,
    quota_service_pb2,
    tenant_pb2,
    tenant_service_pb2,
)
from libs import audit
from libs.clock import HeldClock, SystemClock, new_id
from libs.crypt.ca import Authority
from libs.faults import Fault, NotFound, Unavailable
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from libs.rpc import Call, Caller, Kind, Pipeline, methods
from services.gateway.fleet.access_api import ClusterAccessService
from services.gateway.fleet.clusters_api import ClusterService
from services.gateway.fleet.desired_api import DesiredStateService
from services.gateway.fleet.enrolment_api import EnrolmentService
from services.gateway.fleet.join_tokens_api import JoinTokenService
from services.gateway.fleet.joining import Joining
from services.gateway.fleet.links import LinkKeeper
from services.gateway.fleet.upkeep_api import UpkeepService
from services.gateway.fleet.version import VERSION
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.rights import MemberRights, Membership, known_permissions
from services.gateway.tenancy.environments_api import EnvironmentService
from services.gateway.tenancy.members_api import MemberService
from services.gateway.tenancy.projects_api import ProjectService
from services.gateway.tenancy.quotas_api import QuotaService
from services.gateway.tenancy.tenants_api import TenantService

GATEWAY = Path(__file__).parents[2]
HARD = {"limits.cpu": "20", "limits.memory": "40Gi", "requests.storage": "100Gi"}
QUOTA = {"limits.cpu": "4", "limits.memory": "8Gi", "requests.storage": "10Gi"}
Env = environment_pb2.Environment


@dataclass(slots=True)
class FakeLinks:
    """Tunnels that are not there: what a test says is online, and what it answers."""

    reachable: set[str] = field(default_factory=set)
    replies: dict[str, Any] = field(default_factory=dict)
    principals: list[Any] = field(default_factory=list)

    def online(self, uid: str) -> bool:
        """Whether the test says so."""
        return uid in self.reachable

    async def call(self, uid: str, method: Any, request: Message, principal: Any, timeout: float = 0, *, cluster: str = "") -> Any:
        """The test's answer."""
        self.principals.append(principal)
        if uid not in self.reachable:
            raise Unavailable(f"cluster {cluster} is offline", retry_after=timedelta(seconds=5))
        return self.replies[method.name]

    async def kubernetes(self, uid: str, request: Any, body: Any, principal: Any, *, cluster: str = "") -> Any:
        """The test's answer."""
        self.principals.append(principal)
        return self.replies[request.path]


@dataclass(slots=True)
class IssuedToken:
    """A token for `/k8s`."""

    token: str


@dataclass(slots=True)
class House:
    """Calls, and shortcuts for what most tests need first."""

    database: Database
    clock: HeldClock
    ca: Authority
    links: FakeLinks
    removed: list[str]
    pipeline: Pipeline
    methods: dict[str, Any]

    async def call(self, method: str, request: Message, user: str = "admin", *, agent: str = "", service: str = "") -> Any:
        """The reply to `Service/Method` as a user, a cluster's agent or a hub service gets it."""
        call = Call(self.methods[method], credential=user, transport="rest")
        if agent:
            call.peer = f"spiffe://kubegems/cluster/{agent}"
        if service:
            call.peer = f"spiffe://kubegems/hub/{service}"
        return await self.pipeline.unary(call, request)

    def with_image(self, image: str) -> House:
        """The same database behind a hub that names an image of the agent."""
        return _built(self.database, image)

    async def sql(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """Rows, seen from behind."""
        async with self.database.transaction() as tx:
            return [dict(row.items()) for row in await tx.rows(sql, *args)]

    async def everything(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of tenancy and fleet that a refused call must leave alone."""
        tables = ["tenancy.tenants", "tenancy.projects", "tenancy.environments", "tenancy.members", "tenancy.quotas", "tenancy.outbox"]
        tables += [
            "fleet.clusters",
            "fleet.desired",
            "fleet.desired_objects",
            "fleet.tombstones",
            "fleet.join_tokens",
            "fleet.certificates",
        ]
        return {table: await self.sql(f"SELECT * FROM {table} AS t ORDER BY t::text") for table in tables}

    async def user(self, name: str = "") -> str:
        """A new user."""
        name = name or f"u{secrets.token_hex(4)}"
        await self.sql(
            "INSERT INTO identity.users (uid, username, display_name, password_hash, created, updated)"
            " VALUES ($1, $2, $3, '', now(), now())",
            new_id(), name, f"{name} of us",
        )  # fmt: skip
        return name

    async def cluster(self, *, online: bool = True) -> tuple[str, str]:
        """A new cluster: name and uid."""
        request = cluster_service_pb2.CreateClusterRequest(cluster_id=f"c{secrets.token_hex(4)}")
        made = await self.call("ClusterService/CreateCluster", request)
        if online:
            await LinkKeeper(self.database, self.clock).changed(made.uid, True, VERSION)
        return made.name.removeprefix("clusters/"), made.uid

    async def tenant(self, cluster: str = "", name: str = "", **fields: Any) -> str:
        """A new tenant with project `shop`, and quota HARD on a cluster if one is named."""
        name = name or f"t{secrets.token_hex(4)}"
        await self.call(
            "TenantService/CreateTenant", tenant_service_pb2.CreateTenantRequest(tenant_id=name, tenant=tenant_pb2.Tenant(**fields))
        )
        await self.project(name, "shop")
        if cluster:
            await self.quota(name, cluster, HARD)
        return name

    async def project(self, tenant: str, project: str, user: str = "admin", **fields: Any) -> Any:
        """A new project."""
        request = project_service_pb2.CreateProjectRequest(
            parent=f"tenants/{tenant}", project_id=project, project=project_pb2.Project(**fields)
        )
        return await self.call("ProjectService/CreateProject", request, user)

    async def quota(self, tenant: str, cluster: str, hard: dict[str, str], etag: str = "") -> Any:
        """Sets a tenant's quota."""
        quota = quota_pb2.TenantQuota(name=f"tenants/{tenant}/quotas/{cluster}", hard=hard, etag=etag)
        return await self.call("QuotaService/UpdateTenantQuota", quota_service_pb2.UpdateTenantQuotaRequest(quota=quota))

    async def environment(
        self, tenant: str, cluster: str, name: str = "dev", *, user: str = "admin", project: str = "shop", **fields: Any
    ) -> Any:
        """A new environment with quota QUOTA unless given."""
        env = Env(cluster=f"clusters/{cluster}", **({"quota": QUOTA} | fields))
        request = environment_service_pb2.CreateEnvironmentRequest(
            parent=f"tenants/{tenant}/projects/{project}", environment_id=name, environment=env
        )
        return await self.call("EnvironmentService/CreateEnvironment", request, user)

    async def get_environment(self, name: str, user: str = "admin") -> Any:
        """An environment by resource name."""
        return await self.call("EnvironmentService/GetEnvironment", environment_service_pb2.GetEnvironmentRequest(name=name), user)

    async def delete_environment(self, name: str, user: str = "admin", etag: str = "") -> Any:
        """Starts to delete one."""
        request = environment_service_pb2.DeleteEnvironmentRequest(name=name, etag=etag)
        return await self.call("EnvironmentService/DeleteEnvironment", request, user)

    async def get_tenant(self, tenant: str, user: str = "admin") -> Any:
        """A tenant."""
        return await self.call("TenantService/GetTenant", tenant_service_pb2.GetTenantRequest(name=f"tenants/{tenant}"), user)

    async def member(self, scope: str, user: str, role: str, by: str = "admin") -> Any:
        """Sets a role at a scope."""
        member = member_pb2.Member(name=f"{scope}/members/{user}", role=member_pb2.Member.Role.Value(role))
        return await self.call("MemberService/UpdateMember", member_service_pb2.UpdateMemberRequest(member=member), by)

    async def roles(self, user: str) -> set[tuple[str, str]]:
        """All of a user's memberships: scope and role."""
        rows = await self.sql(
            "SELECT concat_ws('/', tenant, nullif(project, ''), nullif(environment, '')) AS at, role FROM tenancy.members"
            " WHERE user_uid = (SELECT uid FROM identity.users WHERE username = $1)", user,
        )  # fmt: skip
        return {(row["at"], row["role"]) for row in rows}

    async def fetch(self, uid: str, generation: int = 0, checksum: str = "") -> Any:
        """What a cluster's agent gets."""
        request = desired_pb.FetchDesiredStateRequest(known_generation=generation, known_checksum=checksum)
        return await self.call("DesiredStateService/FetchDesiredState", request, agent=uid)

    async def spec(self, uid: str, kind: str, name: str) -> Any:
        """The spec of a desired object; None when it is not desired."""
        for obj in (await self.fetch(uid)).objects:
            if (obj.kind, obj.name) == (kind, name):
                return orjson.loads(obj.manifest)["spec"]
        return None

    async def report(self, uid: str, *objects: desired_pb.ObjectStatus, full: bool = False, generation: int = 10**6, **more: Any) -> None:
        """An agent's report."""
        request = desired_pb.ReportStatusRequest(applied_generation=generation, full=full, objects=objects, **more)
        await self.call("DesiredStateService/ReportStatus", request, agent=uid)

    async def statuses(self, uid: str, state: str, **more: Any) -> list[desired_pb.ObjectStatus]:
        """A status of every desired object, all in one state."""
        return [
            desired_pb.ObjectStatus(
                kind=o.kind, name=o.name, uid=o.uid, generation=o.generation, state=desired_pb.ObjectStatus.State.Value(state), **more
            )
            for o in (await self.fetch(uid)).objects
        ]

    async def obey(self, uid: str) -> None:
        """Plays an agent that holds exactly what it should, in full."""
        await self.report(uid, *await self.statuses(uid, "READY"), full=True, generation=(await self.fetch(uid)).generation)


async def _authenticate(database: Database, call: Call) -> Caller:
    """A user by name: `admin` and `auditor` hold the platform roles, others what their memberships give."""
    name = call.credential
    if name in ("admin", "auditor"):
        return Caller(Kind.USER, name, f"uid of {name}", str(new_id()), MemberRights(name, PlatformRole(name.upper())))
    async with database.transaction() as tx:
        uid = await tx.value("SELECT uid FROM identity.users WHERE username = $1", name)
        members = await tx.rows(
            "SELECT m.level, m.role, m.tenant, m.project, m.environment, t.state FROM tenancy.members m"
            " JOIN tenancy.tenants t ON t.name = m.tenant WHERE m.user_uid = $1", uid,
        )  # fmt: skip
        quotas = await tx.rows("SELECT q.tenant, c.name FROM tenancy.quotas q JOIN fleet.clusters c ON c.uid = q.cluster_uid")
    held = [
        Membership.of(*(m[k] for k in ("level", "role", "tenant", "project", "environment")), suspended=m["state"] == "SUSPENDED")
        for m in members
    ]
    clusters: dict[str, list[str]] = {}
    for row in quotas:
        clusters.setdefault(row["tenant"], []).append(row["name"])
    return Caller(Kind.USER, name, str(uid), str(new_id()), MemberRights(name, PlatformRole.USER, held, clusters))


async def _principal(username: str, cluster_uid: str) -> str:
    if username == "nobody":
        raise NotFound("users/nobody does not exist", {"resource_name": "users/nobody"})
    return f"gems:user:{username} in {cluster_uid}"


@pytest.fixture(scope="module")
async def house(database: Any) -> AsyncIterator[House]:
    """Everything, ready for calls."""
    async with AsyncExitStack() as stack:
        pg = await Database.connect(database.dsn, application_name="test", max_size=12)
        stack.push_async_callback(pg.close)
        await audit.prepare(pg)
        for schema in ("identity", "fleet", "tenancy"):
            await migrate(pg, schema, GATEWAY / schema / "migrations")
        yield _built(pg)


def _built(pg: Database, image: str = "") -> House:
    clock, links, pages = HeldClock(SystemClock().now()), FakeLinks(), Pages(b"p" * 32)
    removed: list[str] = []
    authority, _ = Authority.create("hub", now=clock.now())
    joining = Joining("hub:8446", "hub:8447", "hub:8470", "https://hub:8443", authority.certificate, agent_image=image)
    clusters = ClusterService(
        pages,
        joining=joining,
        on_removed=removed.append,
        kubeconfig_token=lambda caller, uid, ttl: IssuedToken(f"{caller.id} {uid} {ttl}"),
        links=links,
        clock=clock,
    )
    services = [
        (tenant_service_pb2, TenantService(pages)),
        (project_service_pb2, ProjectService(pages)),
        (environment_service_pb2, EnvironmentService(pages)),
        (member_service_pb2, MemberService(pages)),
        (quota_service_pb2, QuotaService(pages)),
        (cluster_service_pb2, clusters),
        (join_token_service_pb2, JoinTokenService(pages, joining=joining, authority=authority, clock=clock)),
        (enrolment_service_pb2, EnrolmentService(authority=authority, joining=joining, clock=clock)),
        (desired_pb, DesiredStateService(clock=clock)),
        (cluster_access_service_pb2, ClusterAccessService(database=pg, links=links, principal=_principal)),
        (upkeep_service_pb2, UpkeepService(database=pg, links=links)),
    ]
    found = [
        m
        for file, servicer in services
        for m in methods(file.DESCRIPTOR.services_by_name[type(servicer).__name__], servicer, known_permissions=known_permissions())
    ]
    auditor = audit.Auditor(pg, "test")

    async def authenticate(call: Call) -> Caller:
        return await _authenticate(pg, call)

    pipeline = Pipeline(
        found, authenticate=authenticate, units=audit.PgUnits(pg, auditor, key=b"r" * 32), audit=auditor, registry=CollectorRegistry()
    )
    by_name = {f"{m.descriptor.containing_service.name}/{m.descriptor.name}": m for m in found}
    return House(pg, clock, authority, links, removed, pipeline, by_name)


class refused:  # noqa: N801 -- reads as `with refused("REASON")`
    """Expects a Fault with a code or reason; afterwards `.fault` is what came."""

    def __init__(self, what: str, *texts: str) -> None:
        self.what, self.texts = what, texts
        self.fault: Fault | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        assert error is not None, f"expected {self.what}, nothing was refused"
        if not isinstance(error, Fault):
            return False
        assert self.what in (error.code.name, error.reason), f"expected {self.what}, got {error.code.name} {error.reason}: {error}"
        for text in self.texts:
            assert text in str(error), f"{text!r} is not in {error}"
        self.fault = error
        return True
