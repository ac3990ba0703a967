"""Records are shown to those whose scopes cover them, by pages, by filter."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from kubegems.audit.v1 import audit_service_pb2 as pb
from libs import audit
from libs.audit import Auditor, Entry, Outcome, PgUnits
from libs.faults import Fault, Invalid, NotFound
from libs.pg import Database
from libs.pg.paging import Pages
from libs.rpc.call import Call, Caller, Kind, Scopes
from libs.rpc.pipeline import Pipeline
from libs.rpc.registry import methods
from services.gateway.audit.api import AuditService

START = datetime(2026, 1, 1, tzinfo=UTC)
RECORDS = [
    ("users/admin", "tenants/acme", Outcome.OK),
    ("users/dev", "tenants/acme/projects/shop/environments/dev", Outcome.OK),
    ("users/dev", "tenants/acme/projects/shop", Outcome.DENIED),
    ("users/eve", "tenants/other/projects/shop", Outcome.OK),
    ("users/admin", "clusters/local", Outcome.FAILED),
    ("users/eve", "tenants/acme-two", Outcome.OK),
]


class HeldRights:
    """The same scopes for every permission."""

    def __init__(self, scopes: Scopes) -> None:
        self._scopes = scopes

    def scopes(self, permission: str) -> Scopes:
        return self._scopes


@pytest.fixture(scope="module")
async def db(database: Any) -> AsyncIterator[Database]:
    """Schema audit with six records."""
    found = await Database.connect(database.dsn, application_name="test")
    await audit.prepare(found)
    auditor = Auditor(found, "test")
    async with found.transaction() as tx:
        for i, (actor, resource, outcome) in enumerate(RECORDS):
            entry = Entry(
                method="/x.Y/Z", class_="WRITE", actor=actor, resources=[resource], outcome=outcome,
                time=START + timedelta(minutes=i), trace_id=f"{i:032}", request={"n": i, "nested": {"list": [1, "x", None]}},
            )  # fmt: skip
            await auditor.record(tx, entry)
    yield found
    await found.close()


class Service:
    """The service behind a pipeline, for one caller."""

    def __init__(self, db: Database, scopes: Scopes, user: str = "dev") -> None:
        served = methods(pb.DESCRIPTOR.services_by_name["AuditService"], AuditService(Pages(b"k" * 32)))

        async def authenticate(_call: Call) -> Caller:
            return Caller(Kind.USER, user, uid=user, rights=HeldRights(scopes))

        self.by_name = {m.descriptor.name: m for m in served}
        self.pipeline = Pipeline(served, authenticate=authenticate, units=PgUnits(db, Auditor(db, "test"), key=b"k"))

    async def page(self, **request: Any) -> pb.ListAuditEventsResponse:
        found: pb.ListAuditEventsResponse = await self.pipeline.unary(
            Call(self.by_name["ListAuditEvents"]), pb.ListAuditEventsRequest(**request)
        )
        return found

    async def resources(self, **request: Any) -> list[str]:
        return [e.resources[0] for e in (await self.page(**request)).audit_events]

    async def get(self, name: str) -> Any:
        return await self.pipeline.unary(Call(self.by_name["GetAuditEvent"]), pb.GetAuditEventRequest(name=name))


EVERYTHING = Scopes(everything=True)


async def test_platform_reader_sees_all_newest_first(db: Database) -> None:
    """With the permission everywhere all records come, newest first, with their facts."""
    found = await Service(db, EVERYTHING).page()
    assert [e.resources[0] for e in found.audit_events] == [r[1] for r in reversed(RECORDS)]
    last = found.audit_events[-1]
    assert (last.actor, last.time.ToDatetime(UTC), getattr(last, "class")) == ("users/admin", START, "WRITE")
    assert MessageToDict(last.request)["nested"]["list"] == [1, "x", None]


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (Scopes(trees=frozenset({"tenants/acme"})), {0, 1, 2}),
        (Scopes(trees=frozenset({"tenants/acme/projects/shop"})), {1, 2}),
        (Scopes(trees=frozenset({"tenants/other/projects/shop", "tenants/acme-two"})), {3, 5}),
        (Scopes(exact=frozenset({"tenants/acme"})), {0}),
        (Scopes(trees=frozenset({"tenants/acm", "users/dev", "clusters/local"})), set()),
    ],
)
async def test_scoped_reader_sees_its_own(db: Database, scopes: Scopes, expected: set[int]) -> None:
    """A tenant's or project's auditor sees its tree, whole names only; platform records are not among them."""
    assert set(await Service(db, scopes).resources()) == {RECORDS[i][1] for i in expected}


async def test_without_the_permission_nothing(db: Database) -> None:
    """Held nowhere, the call ends in a refusal or an empty list, never in records; the positive control is above."""
    try:
        assert await Service(db, Scopes()).resources() == []
    except Fault as fault:
        assert fault.code.name in ("NOT_FOUND", "PERMISSION_DENIED")  # noqa: PT017 -- either way is fine, records are not


async def test_pages_and_filter(db: Database) -> None:
    """A filtered list walked by pages of one shows each match once."""
    service = Service(db, EVERYTHING)
    seen: list[str] = []
    token = ""
    while True:
        page = await service.page(page_size=1, page_token=token, filter="actor = users/dev AND time >= 2026-01-01T00:00:00Z")
        seen += [e.resources[0] for e in page.audit_events]
        token = page.next_page_token
        if not token:
            break
    assert seen == [RECORDS[2][1], RECORDS[1][1]]
    assert await service.resources(filter='outcome = DENIED AND method:"y/z"') == [RECORDS[2][1]]
    assert await service.resources(filter="resource:clusters/local") == ["clusters/local"]
    assert await service.resources(filter=f"trace_id = {3:032}") == [RECORDS[3][1]]


async def test_a_page_token_is_its_callers(db: Database) -> None:
    """Another caller cannot go on with it."""
    token = (await Service(db, EVERYTHING).page(page_size=1)).next_page_token
    with pytest.raises(Invalid, match="page_token"):
        await Service(db, EVERYTHING, user="eve").page(page_size=1, page_token=token)


@pytest.mark.parametrize(
    "text", ["actor = x' OR '1'='1", "actor = x) or (true", "sealed_seq = 1", "e.actor = x", "outcome = NO", "time > x"]
)
async def test_filter_injection(db: Database, text: str) -> None:
    """What is no filter over the known fields is refused."""
    with pytest.raises(Invalid, match="filter"):
        await Service(db, EVERYTHING).page(filter=text)


async def test_quoted_sql_is_just_text(db: Database) -> None:
    """Quoted SQL finds nothing and breaks nothing, and shows nothing beyond the reader's scope."""
    narrow = Service(db, Scopes(trees=frozenset({"tenants/acme-two"})))
    assert await narrow.resources(filter='actor = "x\' or 1=1 --"') == []
    assert await narrow.resources(filter="actor != \"x') or true or ('\"") == ["tenants/acme-two"]


async def test_get(db: Database) -> None:
    """A record is shown by name to those who see it in the list; to others it is missing, like one that never was."""
    name = (await Service(db, EVERYTHING).page()).audit_events[-1].name
    tenant = Service(db, Scopes(trees=frozenset({"tenants/acme"})))
    assert (await tenant.get(name)).name == name
    for hidden in (name, "audit/events/nonsense"):
        with pytest.raises(NotFound, match=hidden):
            await Service(db, Scopes(trees=frozenset({"tenants/other"}))).get(hidden)
