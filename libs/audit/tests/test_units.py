"""Rows, record and answer commit together, or none of them does."""

import asyncio
from typing import Any

import pytest

from kubegems.identity.v1 import user_service_pb2
from libs import pg
from libs.faults import Precondition
from libs.rpc.call import Call

CANARY = "canary-0123456789"


def a_user(name: str = "dev", request_id: str = "", password: str = CANARY) -> user_service_pb2.CreateUserRequest:
    return user_service_pb2.CreateUserRequest(user_id=name, initial_password=password, request_id=request_id)


async def test_commit_holds_all_three(house: Any) -> None:
    """A WRITE leaves its row, its record and its answer."""
    house.handler = house.add_row
    reply = await house.run(house.create, a_user(request_id="one"))
    assert reply.name == "users/dev"
    assert await house.rows() == ["dev"]
    (event,) = await house.events()
    assert (event["outcome"], event["class"], event["actor"], event["session"]) == ("OK", "SENSITIVE", "users/admin", "s1")
    assert (event["method"], event["address"], event["request_id"]) == ("/kubegems.identity.v1.UserService/CreateUser", "10.0.0.1", "r1")
    assert "users/dev" in event["resources"]
    assert len(event["trace_id"]) == 32
    async with house.database.transaction() as tx:
        assert await tx.value("select answer is not null from audit.requests where request_id = 'one'")


async def test_rollback_leaves_only_the_failure(house: Any) -> None:
    """A handler that fails after writing leaves no row and no answer; the failure is recorded apart, and the id is free again."""

    async def fails(request: Any, call: Call) -> Any:
        await house.add_row(request, call)
        raise Precondition("not now")

    house.handler = fails
    with pytest.raises(Precondition):
        await house.run(house.create, a_user(request_id="one"))
    assert await house.rows() == []
    (event,) = await house.events()
    assert (event["outcome"], event["code"], event["reason"]) == ("FAILED", "FAILED_PRECONDITION", "FAILED_PRECONDITION")
    house.handler = house.add_row
    await house.run(house.create, a_user(request_id="one"))
    assert await house.rows() == ["dev"]


async def test_record_that_cannot_be_written_undoes_the_change(house: Any) -> None:
    """Acted but not recorded is impossible: when the record fails, the rows go too."""
    house.handler = house.add_row
    async with house.database.transaction() as tx:
        await tx.execute("alter table audit.events add constraint no_more check (method = '') not valid")
    try:
        with pytest.raises(Exception, match="internal error"):
            await house.run(house.create, a_user(request_id="one"))
    finally:
        async with house.database.transaction() as tx:
            await tx.execute("alter table audit.events drop constraint no_more")
            assert await tx.value("select count(*) from audit.requests") == 0
    assert await house.rows() == []


async def test_same_request_same_answer(house: Any) -> None:
    """The same id with the same body does the work once and gets the same answer, by field or by header."""
    house.handler = house.add_row
    first = await house.run(house.create, a_user(request_id="one"))
    again = await house.run(house.create, a_user(request_id="one"))
    header = await house.run(house.create, a_user(), metadata={"idempotency-key": "one"})
    assert first == again == header
    assert await house.rows() == ["dev"]
    await house.auditor.flush()
    assert [(e["outcome"], e["reason"]) for e in await house.events()] == [("OK", ""), ("OK", "REPLAYED"), ("OK", "REPLAYED")]


@pytest.mark.parametrize("other", [a_user("other", "one"), a_user("dev", "one", password="another-password")])
async def test_same_id_other_body(house: Any, other: Any) -> None:
    """The same id with another body, be it only another password, is refused and does nothing."""
    house.handler = house.add_row
    await house.run(house.create, a_user(request_id="one"))
    with pytest.raises(Precondition, match="'one' was used with another request"):
        await house.run(house.create, other)
    assert await house.rows() == ["dev"]


async def test_ids_are_the_callers_own(house: Any) -> None:
    """Another caller's same id is another request."""
    house.handler = house.add_row
    await house.run(house.create, a_user(request_id="one"))
    house.user = "eve"
    await house.run(house.create, a_user(request_id="one"))
    assert await house.rows() == ["dev", "dev"]


async def test_an_id_is_free_after_a_day(house: Any) -> None:
    """24 h later the id does new work, swept or not."""
    house.handler = house.add_row
    await house.run(house.create, a_user(request_id="one"))
    async with house.database.transaction() as tx:
        await tx.execute("update audit.requests set created = created - interval '25 hours'")
    await house.run(house.create, a_user("second", "one"))
    assert await house.rows() == ["dev", "second"]


async def test_concurrent_repeats_do_it_once(house: Any) -> None:
    """Repeats sent at the same time wait for the first and get its answer."""
    house.handler = house.add_row
    replies = await asyncio.gather(*(house.run(house.create, a_user(request_id="one")) for _ in range(6)))
    assert {r.name for r in replies} == {"users/dev"}
    assert await house.rows() == ["dev"]


async def test_answers_with_secrets_are_not_kept(house: Any) -> None:
    """A reply with a secret in it is not stored; a repeat is told so, and nothing is done twice."""
    from kubegems.identity.v1 import session_service_pb2  # noqa: PLC0415 -- for this test's odd reply alone

    async def secret(request: Any, call: Call) -> Any:
        await house.add_row(request, call)
        return session_service_pb2.CreateSessionResponse(access_token=CANARY)

    house.handler = secret
    await house.run(house.create, a_user(request_id="one"))
    with pytest.raises(Precondition, match="held secrets"):
        await house.run(house.create, a_user(request_id="one"))
    assert await house.rows() == ["dev"]


async def test_cancelled_call_commits_all_or_nothing(house: Any) -> None:
    """A caller that leaves in the handler leaves no row; its record says CANCELLED."""
    inside = asyncio.Event()

    async def waits(request: Any, call: Call) -> Any:
        await house.add_row(request, call)
        inside.set()
        await asyncio.Event().wait()

    house.handler = waits
    task = asyncio.create_task(house.run(house.create, a_user(request_id="one")), name="a call")
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await house.rows() == []
    assert [(e["outcome"], e["code"]) for e in await house.events()] == [("FAILED", "CANCELLED")]


async def test_reads_keep_nothing_open(house: Any) -> None:
    """A read's transaction is ended and its record is buffered, then flushed."""

    async def reads(request: Any, call: Call) -> Any:
        await (await pg.tx(call)).value("select 1")
        return call.method.response_class()

    house.handler = reads
    for _ in range(12):  # more than there are connections
        await house.run(house.get, user_service_pb2.GetUserRequest(name="users/dev"))
    assert await house.events() == []
    await house.auditor.flush()
    assert {(e["class"], e["outcome"], *e["resources"]) for e in await house.events()} == {("READ", "OK", "users/dev")}
