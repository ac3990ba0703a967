"""A service behind the real pipeline, with audit in a real PostgreSQL."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from kubegems.fleet.v1 import cluster_access_service_pb2
from kubegems.identity.v1 import user_service_pb2
from libs import audit, pg
from libs.audit import Auditor, PgUnits
from libs.log import trace
from libs.pg import Database
from libs.rpc.call import Call, Caller, Kind, Method, Scopes
from libs.rpc.pipeline import Pipeline
from libs.rpc.registry import bind

Handler = Callable[[Any, Call], Awaitable[Any]]


class AllRights:
    """Everything, everywhere."""

    def scopes(self, permission: str) -> Scopes:
        return Scopes(everything=True)


class House:
    """A service whose handler a test gives."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.auditor = Auditor(database, "test")
        self.handler: Handler = self.nothing
        self.user = "admin"
        users = user_service_pb2.DESCRIPTOR.services_by_name["UserService"].methods_by_name
        access = cluster_access_service_pb2.DESCRIPTOR.services_by_name["ClusterAccessService"].methods_by_name
        self.create = self.bind(users["CreateUser"])
        self.get = self.bind(users["GetUser"])
        self.count = self.bind(access["CountInventory"])
        self.pipeline = Pipeline(
            [self.create, self.get, self.count],
            authenticate=self.authenticate,
            peers=self.authenticate,
            units=PgUnits(database, self.auditor, key=b"hub key"),
            audit=self.auditor,
        )

    def bind(self, descriptor: Any) -> Method:
        async def handle(request: Any, call: Call) -> Any:
            return await self.handler(request, call)

        return bind(descriptor, handle)

    async def authenticate(self, _call: Call) -> Caller:
        return Caller(Kind.USER, self.user, uid=f"uid-{self.user}", session="s1", rights=AllRights())

    async def nothing(self, request: Any, call: Call) -> Any:
        return call.method.response_class()

    async def add_row(self, request: Any, call: Call) -> Any:
        """Writes one row, as handlers do."""
        tx = await pg.tx(call)
        await tx.execute("insert into rows (name) values ($1)", request.user_id)
        call.resources.append(f"users/{request.user_id}")
        return call.method.response_class(name=f"users/{request.user_id}")

    async def run(self, method: Method, request: Any, **call: Any) -> Any:
        return await self.pipeline.unary(Call(method, request_id="r1", address="10.0.0.1", user_agent="test", **call), request)

    async def events(self, condition: str = "true", *args: Any) -> list[Any]:
        async with self.database.transaction(readonly=True) as tx:
            return await tx.rows(f"select * from audit.events where {condition} order by id", *args)

    async def rows(self) -> list[str]:
        async with self.database.transaction(readonly=True) as tx:
            return [row["name"] for row in await tx.rows("select name from rows order by name")]


@pytest.fixture(scope="session", autouse=True)
def _tracing() -> None:
    """Trace ids exist without an exporter."""
    trace.setup("test", endpoint=None)


@pytest.fixture(scope="module")
async def db(database: Any) -> AsyncIterator[Database]:
    """Schema audit, and a table for the handler's rows."""
    found = await Database.connect(database.dsn, application_name="test", max_size=8)
    await audit.prepare(found)
    async with found.transaction() as tx:
        await tx.execute("create table rows (name text not null)")
    yield found
    await found.close()


@pytest.fixture
async def house(db: Database) -> House:
    """A house without rows or records."""
    async with db.transaction() as tx:
        await tx.execute("truncate audit.events, audit.requests, audit.processes, rows")
    return House(db)
