"""Several gateways on one database: whose word on a cluster counts, and what becomes of what a dead one held."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from kubegems.fleet.v1 import events_pb2
from services.gateway.fleet.certificates_store import superseded
from services.gateway.fleet.health_keeper import HealthKeeper
from services.gateway.fleet.health_store import Measure
from services.gateway.fleet.hints import Hints
from services.gateway.fleet.links import LinkKeeper
from services.gateway.fleet.version import VERSION
from services.gateway.tenancy.tests.house import House


async def _online(house: House, uid: str) -> tuple[bool, str]:
    (row,) = await house.sql("SELECT online, holder FROM fleet.clusters WHERE uid = $1", uid)
    return row["online"], row["holder"]


async def _told(house: House, uid: str) -> list[bool]:
    rows = await house.sql("SELECT payload FROM fleet.outbox WHERE subject = 'gems.platform.fleet.link-changed' ORDER BY seq")
    return [e.online for e in (events_pb2.ClusterLinkChanged.FromString(r["payload"]) for r in rows) if e.uid == uid]


def _keeper(house: House, told: list[str] | None = None) -> LinkKeeper:
    name = uuid4().hex
    return LinkKeeper(house.database, house.clock, name, on_forgotten=lambda: (told if told is not None else []).append(name))


async def test_the_newest_tunnel_counts_whoever_tells_of_it_and_when(house: House) -> None:
    """An agent that moved is told of by both; the old gateway's late words change nothing, and nobody hears of the move."""
    _, uid = await house.cluster(online=False)
    old, new = _keeper(house), _keeper(house)
    first, second = await old.number(), await new.number()
    assert first < second
    await old.changed(uid, True, VERSION, first)
    await new.changed(uid, True, VERSION, second)
    holder = await _online(house, uid)
    await old.changed(uid, False, VERSION, first)
    await old.changed(uid, True, VERSION, first)
    assert await _online(house, uid) == holder
    async with house.database.transaction(readonly=True) as tx:
        assert await superseded(tx, {uid: first}) == {uid: second}
        assert await superseded(tx, {uid: second}) == {}
    assert await _told(house, uid) == [True]
    await new.changed(uid, False, VERSION, second)
    assert await _told(house, uid) == [True, False]


async def test_numbers_rise_although_the_databases_clock_went_back(house: House) -> None:
    """Else an agent that comes back would be put out, and shown as offline, until the clock has caught up."""
    keeper = _keeper(house)
    ahead = await keeper.number() + 3_600_000 * 4096
    (row,) = await house.sql("SELECT last_value FROM fleet.tunnel_numbers")
    try:
        await house.sql("SELECT setval('fleet.tunnel_numbers', $1)", ahead)
        made = await asyncio.gather(*(_keeper(house).number() for _ in range(20)))
        assert sorted(made) == list(range(ahead + 1, ahead + 21))
    finally:
        await house.sql("SELECT setval('fleet.tunnel_numbers', $1)", row["last_value"])


async def test_a_gateway_that_starts_leaves_the_others_clusters_online(house: House) -> None:
    """Also when it looks for dead ones, as long as the other shows itself."""
    _, uid = await house.cluster(online=False)
    standing, starting = _keeper(house), _keeper(house)
    await standing.start()
    await standing.changed(uid, True, VERSION, await standing.number())
    await starting.start()
    await starting.beat()
    await starting.lapsed()
    assert await _online(house, uid) == (True, (await _online(house, uid))[1])
    await starting.leave()
    assert (await _online(house, uid))[0]


async def test_what_a_dead_gateway_held_goes_offline_once_and_not_what_came_back(house: House) -> None:
    """Of two clusters of a dead gateway the one whose agent is at another gateway by then stays online; each change is told once."""
    (_, gone), (_, moved) = await house.cluster(online=False), await house.cluster(online=False)
    dead, one, two = _keeper(house), _keeper(house), _keeper(house)
    for keeper in (dead, one, two):
        await keeper.start()
    for uid in (gone, moved):
        await dead.changed(uid, True, VERSION, await dead.number())
    await one.changed(moved, True, VERSION, await one.number())
    await house.sql(
        "UPDATE fleet.gateways SET seen = now() - interval '1 minute' WHERE id = (SELECT holder FROM fleet.clusters WHERE uid = $1)", gone
    )
    assert (await one.lapsed(), await two.lapsed()) == (1, 0)
    assert ((await _online(house, gone))[0], (await _online(house, moved))[0]) == (False, True)
    assert (await _told(house, gone), await _told(house, moved)) == ([True, False], [True])


async def test_a_gateway_that_was_taken_for_dead_tells_everything_again(house: House) -> None:
    """Its next sign of life makes it known again; what it holds is told anew and goes online."""
    _, uid = await house.cluster(online=False)
    told: list[str] = []
    paused, other = _keeper(house, told), _keeper(house)
    await paused.start()
    await other.start()
    number = await paused.number()
    await paused.changed(uid, True, VERSION, number)
    await house.sql("UPDATE fleet.gateways SET seen = now() - interval '1 minute'")
    await other.beat()
    await other.lapsed()
    assert not (await _online(house, uid))[0]
    await paused.beat()
    assert len(told) == 1
    await paused.changed(uid, True, VERSION, number)
    assert (await _online(house, uid))[0]
    await paused.beat()
    assert len(told) == 1


async def test_nobody_is_judged_right_after_an_outage(house: House) -> None:
    """A gateway that could not show itself itself waits until the others had time to, before it takes any for dead."""
    keeper = _keeper(house)
    await keeper.start()
    await keeper.beat()
    assert not keeper.may_judge()
    for _ in range(4):
        house.clock.advance(timedelta(seconds=2))
        await keeper.beat()
    assert keeper.may_judge()
    house.clock.advance(timedelta(minutes=5))
    await keeper.beat()
    assert not keeper.may_judge()


async def test_the_gateway_that_holds_a_tunnel_hints_and_no_other(house: House) -> None:
    """Of two gateways that hear of a change the holder alone sends the hint, and repeats it while the agent lags."""
    cluster, uid = await house.cluster()
    sent: list[str] = []
    enough = asyncio.Event()

    def hints(name: str, *, here: bool) -> Hints:
        async def send(to: str, generation: int) -> None:
            assert generation
            if to == uid:
                sent.append(name)
            if len(sent) >= 3:
                enough.set()

        return Hints(house.database, send, every=0.1, here=lambda to: here and to == uid)

    tasks = [asyncio.create_task(hints("holder", here=True).run()), asyncio.create_task(hints("other", here=False).run())]
    try:
        async with asyncio.timeout(20):
            await house.tenant(cluster)
            await enough.wait()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert set(sent) == {"holder"}


async def test_an_older_tunnel_is_let_go_without_any_word_from_nats(house: House) -> None:
    """The look at the database finds it; the newest one stays."""
    (_, moved), (_, stayed) = await house.cluster(online=False), await house.cluster(online=False)
    old, new = _keeper(house), _keeper(house)
    held = {uid: await old.number() for uid in (moved, stayed)}
    for uid, number in held.items():
        await house.sql(
            "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) VALUES ($1, $2, now(), now() + interval '1 day')",
            uid,
            uid,
        )
        await old.changed(uid, True, VERSION, number)
    newest = await new.number()
    await new.changed(moved, True, VERSION, newest)
    tunnels = _Tunnels(held)
    await HealthKeeper(house.database, tunnels, house.clock).put_out()
    assert tunnels.let_go == [(moved, newest)]


class _Tunnels:
    """Tunnels of one gateway, each with its cluster's uid as the serial number of its certificate."""

    def __init__(self, held: dict[str, int]) -> None:
        self._held = held
        self.let_go: list[tuple[str, int]] = []

    def measures(self) -> dict[str, Measure]:
        return {}

    def serials(self) -> dict[str, str]:
        return {uid: uid for uid in self._held}

    def numbers(self) -> dict[str, int]:
        return self._held

    def disconnect(self, uid: str, why: str) -> bool:
        raise AssertionError(uid, why)

    def superseded(self, uid: str, number: int) -> None:
        self.let_go.append((uid, number))
