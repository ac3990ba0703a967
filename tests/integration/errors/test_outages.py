"""Every public RPC while something that it needs is away, or is not as the code believes: one form, an id, nothing told."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.contract.calls import Example, examples
from tests.contract.edge import PASSWORD
from tests.integration.errors.conftest import World
from tests.integration.errors.wire import standard
from tests.kit.eventually import eventually, timescale

ALL = list(examples())
READS = [example for example in ALL if example.method == "GET"]
_AT_ONCE = 16
_AWAY = {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


@pytest.fixture(autouse=True)
async def _mended(world: World) -> AsyncIterator[None]:
    """The control: before and after it, all is well."""
    await _well(world)
    yield
    await _well(world)


async def _well(world: World) -> None:
    async def check() -> Any:
        answer = await world.edge.admin.call("GET", "/tenants/acme/projects/shop/environments/dev")
        assert answer.status == 200, answer.body
        assert (await world.edge.admin.call("GET", "/jobs")).status == 200
        return True

    await eventually(check, within=30, every=0.2)


async def _walked(world: World, some: list[Example], *, at_once: int = _AT_ONCE) -> Counter[str]:
    """Asks them all; how often which canonical code came."""
    seen: Counter[str] = Counter()
    gate = asyncio.Semaphore(at_once)

    async def one(example: Example) -> None:
        async with gate:
            reply = await world.ask(example)
        if reply.status < 400 and not (isinstance(reply.body, dict) and "error" in reply.body):
            seen["OK"] += 1
            return
        status = reply.status if reply.status >= 400 else reply.body["error"]["code"]
        try:
            error = standard(status, reply.headers, reply.body, tables=world.tables)
        except AssertionError as failure:
            raise AssertionError(f"{example.name}: {failure}") from failure
        seen[error["status"]] += 1

    async with asyncio.TaskGroup() as group:
        for example in some:
            group.create_task(one(example), name=example.name)
    return seen


async def test_postgresql_is_away(world: World) -> None:
    """UNAVAILABLE for whatever needs it, reads and writes, sign-in too; nothing is a mistake of ours."""
    world.postgres.cut()
    try:
        seen = await _walked(world, ALL)
        signing_in = await world.edge.nobody.call("POST", "/sessions", {"username": "admin", "password": PASSWORD})
    finally:
        world.postgres.mend()
    assert seen["UNAVAILABLE"] > len(ALL) / 2, seen
    assert not seen["INTERNAL"] + seen["UNKNOWN"], seen
    assert standard(signing_in.status, signing_in.headers, signing_in.body)["status"] == "UNAVAILABLE"


async def test_postgresql_does_not_answer(world: World) -> None:
    """The caller's time ends the wait, with DEADLINE_EXCEEDED or UNAVAILABLE; a rollback that gets no answer holds nobody up."""
    world.postgres.freeze()
    try:
        async with asyncio.timeout(15 * timescale()):
            replies = await asyncio.gather(*(world.ask(example, **{"Grpc-Timeout": "500m"}) for example in READS[:12]))
    finally:
        world.postgres.mend()
    for reply in replies:
        if reply.status != 200:
            assert standard(reply.status, reply.headers, reply.body, tables=world.tables)["status"] in _AWAY
    assert {reply.status for reply in replies} & {503, 504}


@pytest.mark.parametrize(
    "thing", ["SCHEMA tenancy", "SCHEMA fleet", "SCHEMA identity", "SCHEMA jobs", "SCHEMA audit", "TABLE messages.states"]
)
async def test_the_database_is_not_as_we_believe(world: World, thing: str) -> None:
    """A schema or a table is gone: INTERNAL with an id, where it is missed; not one name of a table, a column or a constraint."""
    name = thing.replace(".", " ").rsplit(maxsplit=1)[-1]
    await world.execute(f"ALTER {thing} RENAME TO {name}_gone")
    try:
        seen = await _walked(world, [example for example in ALL if not example.streams])
    finally:
        await world.execute(f"ALTER {thing}_gone RENAME TO {name}")
    assert seen["INTERNAL"] + seen["UNAVAILABLE"], seen


async def test_nats_is_away(world: World) -> None:
    """Requests are answered all the same: what is to be told waits in the outbox."""
    world.nats.cut()
    try:
        seen = await _walked(world, READS)
    finally:
        world.nats.mend()
    assert seen["OK"] > len(READS) / 2, seen
    assert not seen["INTERNAL"] + seen["UNKNOWN"], seen


async def test_a_handler_makes_a_mistake(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the code of a list raises, in the gateway and in the worker behind it."""
    from libs.pg import lists  # noqa: PLC0415 -- what is patched

    planted = 'File "/srv/hub/store.py", line 7, SELECT name FROM identity.users at 10.1.2.3:5432'
    raising: list[Callable[[], BaseException]] = [
        lambda: RuntimeError(planted), lambda: KeyError(planted), lambda: OSError(5, planted, "/etc/kubegems"),
    ]  # fmt: skip
    for error in raising:

        async def broken(*_: Any, error: Callable[[], BaseException] = error, **__: Any) -> Any:
            raise error()

        with monkeypatch.context() as patch:
            patch.setattr(lists, "read", broken)
            seen = await _walked(world, [example for example in READS if ".List" in example.name])
        assert seen["INTERNAL"] >= 10, seen
