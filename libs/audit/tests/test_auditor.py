"""Denials, intents, orphans, buffers, and no secret anywhere."""

import asyncio
from typing import Any

import pytest

from kubegems.fleet.v1 import cluster_access_service_pb2
from kubegems.identity.v1 import user_service_pb2
from libs.audit import Auditor, Entry, Outcome
from libs.audit.entry import common_scope
from libs.audit.redact import holds_secrets, redacted
from libs.faults import Invalid, PermissionDenied, Unavailable
from libs.rpc.call import Call

CANARY = "canary-0123456789"
COUNT = cluster_access_service_pb2.CountInventoryRequest()


async def test_denied_is_recorded_apart(house: Any) -> None:
    """A refusal leaves a record although nothing was done."""

    async def denies(request: Any, call: Call) -> Any:
        raise PermissionDenied("no")

    house.handler = denies
    with pytest.raises(PermissionDenied):
        await house.run(house.create, user_service_pb2.CreateUserRequest(user_id="dev", initial_password=CANARY))
    assert [(e["outcome"], e["code"]) for e in await house.events()] == [("DENIED", "PERMISSION_DENIED")]


async def test_intent_before_outcome_after(house: Any) -> None:
    """What leaves PostgreSQL has its intent committed before, seen from outside, and its outcome after."""
    seen: list[str] = []

    async def acts(request: Any, call: Call) -> Any:
        seen.extend(e["outcome"] for e in await house.events())
        return call.method.response_class()

    house.handler = acts
    await house.run(house.count, cluster_access_service_pb2.CountInventoryRequest(cluster="clusters/local"))
    assert seen == ["PENDING"]
    assert [e["outcome"] for e in await house.events()] == ["OK"]


async def test_external_failure_is_the_outcome(house: Any) -> None:
    """A failing external call ends its one record with code and reason."""

    async def fails(request: Any, call: Call) -> Any:
        raise Unavailable("offline")

    house.handler = fails
    with pytest.raises(Unavailable):
        await house.run(house.count, cluster_access_service_pb2.CountInventoryRequest(cluster="clusters/local"))
    assert [(e["outcome"], e["code"]) for e in await house.events()] == [("FAILED", "UNAVAILABLE")]


async def test_no_intent_no_act(house: Any) -> None:
    """When the intent cannot be recorded the handler does not run."""
    ran: list[int] = []

    async def acts(request: Any, call: Call) -> Any:
        ran.append(1)

    house.handler = acts
    async with house.database.transaction() as tx:
        await tx.execute("alter table audit.events add constraint no_more check (method = '') not valid")
    try:
        with pytest.raises(Exception, match="internal error"):
            await house.run(house.count, cluster_access_service_pb2.CountInventoryRequest(cluster="clusters/local"))
    finally:
        async with house.database.transaction() as tx:
            await tx.execute("alter table audit.events drop constraint no_more")
    assert ran == []


def an_entry(**fields: Any) -> Entry:
    return Entry(**{"method": "kubernetes/exec", "class_": "SENSITIVE", "actor": "users/dev", "outcome": Outcome.PENDING} | fields)


async def test_orphans_become_unknown(house: Any) -> None:
    """Intents of a process that ended or fell silent become UNKNOWN; those of a living one stay PENDING."""
    living, dead = house.auditor, Auditor(house.database, "test")
    await living._beat()
    await dead._beat()
    kept, orphan = await living.begin(an_entry()), await dead.begin(an_entry())
    assert await living.sweep() == 0
    async with house.database.transaction() as tx:
        await tx.execute("update audit.processes set seen = seen - interval '1 minute' where epoch = $1", dead.epoch)
    assert await living.sweep() == 1
    assert {e["id"]: e["outcome"] for e in await house.events()} == {kept: "PENDING", orphan: "UNKNOWN"}
    await dead.end(orphan, an_entry(outcome=Outcome.OK))
    assert {e["id"]: e["outcome"] for e in await house.events()} == {kept: "PENDING", orphan: "OK"}


async def test_run_keeps_the_house(house: Any, eventually: Any) -> None:
    """The upkeep task flushes reads, sweeps a dead process's intents at start, and closing leaves nothing buffered."""
    gone = Auditor(house.database, "test")
    await gone.begin(an_entry())
    upkeep = asyncio.create_task(house.auditor.run(), name="audit upkeep")
    house.auditor.buffer(an_entry(class_="READ", outcome=Outcome.OK, method="kubernetes/get"))

    async def both() -> bool:
        return {(e["method"], e["outcome"]) for e in await house.events()} == {("kubernetes/exec", "UNKNOWN"), ("kubernetes/get", "OK")}

    await eventually(both, within=2, what="buffered read stored, orphan marked")
    upkeep.cancel()
    house.auditor.buffer(an_entry(class_="READ", outcome=Outcome.OK, method="kubernetes/list"))
    await house.auditor.close()
    assert len(await house.events("method = 'kubernetes/list'")) == 1


async def test_ended_records_do_not_change(house: Any) -> None:
    """An ended record refuses another outcome, by our code and by the table itself."""
    event = await house.auditor.begin(an_entry())
    await house.auditor.end(event, an_entry(outcome=Outcome.FAILED, code="UNAVAILABLE"))
    await house.auditor.end(event, an_entry(outcome=Outcome.OK))
    assert [e["outcome"] for e in await house.events()] == ["FAILED"]
    with pytest.raises(Exception, match="has ended"):
        async with house.database.transaction() as tx:
            await tx.execute("update audit.events set actor = 'users/other'")


async def test_hostile_texts_are_stored(house: Any) -> None:
    """What a client can put into paths and headers never makes a record fail: NULs and lone surrogates are replaced."""
    nasty = "a\0b\udcff" + "x" * 5000
    entry = an_entry(
        method=nasty, user_agent=nasty, resources=[nasty], address=nasty, outcome=Outcome.OK, request={nasty: [nasty, {"k": nasty}]}
    )
    house.auditor.buffer(entry)
    await house.auditor.flush()
    (event,) = await house.events()
    assert event["user_agent"].startswith("a\ufffdb?")
    assert len(event["user_agent"]) == 256


async def test_full_buffer_counts_losses(house: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound the buffer drops and counts; what it holds is kept."""
    from libs.audit import auditor as module  # noqa: PLC0415 -- to lower the bound

    monkeypatch.setattr(module, "_BUFFER", 3)
    before = module._LOST.labels("READ")._value.get()
    for _ in range(5):
        house.auditor.buffer(an_entry(class_="READ", outcome=Outcome.OK))
    await house.auditor.flush()
    assert len(await house.events()) == 3
    assert module._LOST.labels("READ")._value.get() - before == 2


async def test_canary(house: Any, connection: Any) -> None:
    """A planted password is in no table of schema audit, whether the call succeeds, fails validation or fails in the handler."""
    house.handler = house.add_row
    create = user_service_pb2.CreateUserRequest(user_id="dev", initial_password=CANARY, request_id="one")
    await house.run(house.create, create)

    async def fails(request: Any, call: Call) -> Any:
        raise Unavailable("later")

    house.handler = fails
    with pytest.raises(Unavailable):
        await house.run(house.create, user_service_pb2.CreateUserRequest(user_id="two", initial_password=CANARY))
    with pytest.raises(Invalid):
        await house.run(house.create, user_service_pb2.CreateUserRequest(user_id="NOT VALID", initial_password=CANARY))
    texts = [
        row[0]
        for table in ("events", "requests", "processes")
        for row in await connection.fetch(f"select t::text || coalesce(convert_from(null, 'UTF8'), '') from audit.{table} t")
    ]
    assert any("users/dev" in text for text in texts), "the scan sees what is there"
    assert not any(CANARY in text or CANARY.encode().hex() in text for text in texts)
    assert len([t for t in texts if "[redacted]" in t]) == 3


def test_redaction_bounds() -> None:
    """Secrets are replaced, long texts cut, NULs made storable."""
    request = user_service_pb2.CreateUserRequest(user_id="a\0b" + "x" * 5000, initial_password=CANARY)
    request.user.display_name = "Dev"
    found = redacted(request)
    assert found["initialPassword"] == "[redacted]"
    assert found["user"] == {"displayName": "Dev"}
    assert "\0" not in found["userId"]
    assert len(found["userId"]) <= 1025
    assert holds_secrets(request)
    assert not holds_secrets(user_service_pb2.CreateUserRequest(user_id="a"))


@pytest.mark.parametrize(
    ("names", "scope"),
    [
        ([], ""),
        (["users/dev", "clusters/local"], ""),
        (["tenants/acme/projects/shop/environments/dev/members/x", "tenants/acme"], "tenants/acme/projects/shop/environments/dev"),
        (["tenants/acme/projects/shop", "tenants/acme/projects/other"], "tenants/acme"),
        (["tenants/acme", "tenants/other/projects/shop"], ""),
        (["tenants/acme/projects/-", "tenants/acme"], "tenants/acme"),
        (["tenants/-"], ""),
    ],
)
def test_common_scope(names: list[str], scope: str) -> None:
    """A record belongs to the deepest scope that holds all of it; what touches two tenants belongs to neither."""
    assert common_scope(names) == scope
