"""The whole of identity over a real PostgreSQL, reached through the pipeline as any caller reaches it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from kubegems.identity.v1 import (
    access_service_pb2,
    api_key_pb2,
    api_key_service_pb2,
    service_account_service_pb2,
    session_service_pb2,
    user_pb2,
    user_service_pb2,
)
from libs import audit
from libs.clock import SystemClock, new_id
from libs.crypt.box import Box
from libs.pg import Database, migrate
from libs.pg.paging import Pages
from libs.rpc import Call, Pipeline, methods
from libs.run import Life
from services.gateway.identity import app, bootstrap
from services.gateway.identity.app import Identity
from services.gateway.identity.passwords import Passwords
from services.gateway.identity.rights import known_permissions

GATEWAY = Path(__file__).parents[2]
PASSWORD = "correct horse battery"
ADMIN_PASSWORD = "first-admin-password"
BOX = Box(b"k" * 32)
WORKER = "spiffe://kubegems/hub/worker"
_SERVICES = [
    (user_service_pb2.DESCRIPTOR.services_by_name["UserService"], "users"),
    (session_service_pb2.DESCRIPTOR.services_by_name["SessionService"], "sessions"),
    (access_service_pb2.DESCRIPTOR.services_by_name["AccessService"], "access"),
    (api_key_service_pb2.DESCRIPTOR.services_by_name["ApiKeyService"], "api_keys"),
    (service_account_service_pb2.DESCRIPTOR.services_by_name["ServiceAccountService"], "service_accounts"),
]


@dataclass(slots=True)
class House:
    """Identity at work: sign in, call, and arrange what belongs to other parts by SQL."""

    database: Database
    identity: Identity
    pipeline: Pipeline
    auditor: audit.Auditor
    methods: dict[str, Any] = field(default_factory=dict)

    def open(self, method: str, **facts: Any) -> Call:
        """A call of `Service/Method`."""
        facts = {"address": "192.0.2.7", "user_agent": "test", "transport": "rest"} | facts
        return Call(self.methods[method], **facts)

    async def call(self, method: str, request: Message, token: str = "", **facts: Any) -> Any:
        """The reply, as a caller with this token gets it."""
        return await self.pipeline.unary(self.open(method, credential=token, **facts), request)

    async def sign_in(self, username: str, password: str = PASSWORD, **facts: Any) -> session_service_pb2.CreateSessionResponse:
        """A new session."""
        request = session_service_pb2.CreateSessionRequest(username=username, password=password)
        reply: session_service_pb2.CreateSessionResponse = await self.call("SessionService/CreateSession", request, **facts)
        return reply

    async def admin(self) -> str:
        """A token of the platform admin."""
        return (await self.sign_in("admin", ADMIN_PASSWORD)).access_token

    async def user(self, role: str = "USER", name: str = "") -> str:
        """A new user's name."""
        name = name or f"u{new_id().hex[-12:]}"
        request = user_service_pb2.CreateUserRequest(
            user_id=name,
            initial_password=PASSWORD,
            user=user_pb2.User(display_name="A Name", platform_role=user_pb2.User.PlatformRole.Value(role)),
        )
        await self.call("UserService/CreateUser", request, await self.admin())
        return name

    async def key(self, token: str, parent: str = "users/me", **limits: Any) -> str:
        """A new API key of an owner, made by whose token this is."""
        request = api_key_service_pb2.CreateApiKeyRequest(
            parent=parent, api_key_id=f"k{new_id().hex[-12:]}", api_key=api_key_pb2.ApiKey(**limits)
        )
        return str((await self.call("ApiKeyService/CreateApiKey", request, token)).key)

    async def sql(self, sql: str, *args: Any) -> None:
        """Changes something behind identity's back."""
        async with self.database.transaction() as tx:
            await tx.execute(sql, *args)

    async def uid(self, username: str) -> UUID:
        """A user's uid."""
        async with self.database.transaction() as tx:
            found: UUID = await tx.value("SELECT uid FROM identity.users WHERE username = $1", username)
            return found

    async def tenant(self, tenant: str = "") -> str:
        """A new tenant with project `shop`."""
        tenant = tenant or f"t{new_id().hex[-8:]}"
        await self.sql("INSERT INTO tenancy.tenants (uid, name) VALUES ($1, $2)", new_id(), tenant)
        await self.sql("INSERT INTO tenancy.projects (uid, tenant, name) VALUES ($1, $2, 'shop')", new_id(), tenant)
        return tenant

    async def cluster(self, tenant: str) -> tuple[str, UUID]:
        """A new cluster that the tenant may use: name and uid."""
        uid, name = new_id(), f"c{new_id().hex[-8:]}"
        await self.sql("INSERT INTO fleet.clusters (uid, name) VALUES ($1, $2)", uid, name)
        await self.sql("INSERT INTO tenancy.quotas (tenant, cluster_uid, hard) VALUES ($1, $2, '{}')", tenant, uid)
        return name, uid

    async def environment(self, tenant: str, name: str, cluster_uid: UUID, *, granted: bool = True) -> None:
        """A new environment in project `shop`, which its cluster has confirmed unless told otherwise."""
        uid = new_id()
        await self.sql(
            "INSERT INTO tenancy.environments (uid, tenant, project, name, cluster_uid, namespace, limit_range)"
            " VALUES ($1, $2, 'shop', $3, $4, $5, '{}')",
            uid, tenant, name, cluster_uid, f"{tenant}-shop-{name}",
        )  # fmt: skip
        if granted:
            await self.sql("INSERT INTO fleet.granted (environment_uid, cluster_uid) VALUES ($1, $2)", uid, cluster_uid)

    async def member(self, username: str, role: str, tenant: str, project: str = "", environment: str = "") -> None:
        """Makes a user a member."""
        level = "environment" if environment else "project" if project else "tenant"
        await self.sql(
            "INSERT INTO tenancy.members (user_uid, level, tenant, project, environment, role) VALUES ($1, $2, $3, $4, $5, $6)",
            await self.uid(username), level, tenant, project, environment, role,
        )  # fmt: skip


@pytest.fixture(scope="module")
async def house(database: Any, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Identity with the user `admin`, ready for calls."""
    life = Life()
    async with life.stack:
        pg = await Database.connect(database.dsn, application_name="test", max_size=8)
        life.stack.push_async_callback(pg.close)
        await audit.prepare(pg)
        await app.prepare(pg)
        for owner in ("fleet", "tenancy"):
            await migrate(pg, owner, GATEWAY / owner / "migrations")
        yield await _started(life, pg, tmp_path_factory.mktemp("bootstrap"))
        life.stopping.set()


async def _started(life: Life, pg: Database, folder: Path) -> House:
    # cheap on purpose: what is tested is what is done around a hash; test_passwords tests the real cost
    passwords = Passwords(memory_kib=64, passes=1, waiting=64)
    identity = await app.start(life, database=pg, box=BOX, pages=Pages(b"p" * 32), clock=SystemClock(), passwords=passwords)
    (folder / "password").write_text(ADMIN_PASSWORD)
    (folder / "password").chmod(0o600)
    auditor = audit.Auditor(pg, "test")
    await bootstrap.bootstrap_admin(pg, folder / "password", passwords=passwords, auditor=auditor)
    found = [m for service, part in _SERVICES for m in methods(service, getattr(identity, part), known_permissions=known_permissions())]
    pipeline = Pipeline(
        found,
        authenticate=identity.authenticator.authenticate,
        units=audit.PgUnits(pg, auditor, key=b"r" * 32),
        audit=auditor,
        registry=CollectorRegistry(),
    )
    by_name = {f"{m.descriptor.containing_service.name}/{m.descriptor.name}": m for m in found}
    return House(pg, identity, pipeline, auditor, by_name)
