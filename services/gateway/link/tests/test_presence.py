"""Who holds which tunnel, as several gateways tell each other through a real NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from kubegems.agent.v1.tunnel_pb2 import TunnelHolder
from libs.bus import Bus, Received, streams, subjects
from libs.faults import Unavailable
from services.gateway.link import presence as presences
from services.gateway.link.presence import Presence
from tests.kit.nats import NatsServer


class Own:
    """The tunnels of one gateway."""

    def __init__(self) -> None:
        self.held: dict[str, TunnelHolder] = {}
        self.lost: list[tuple[str, int]] = []

    def holdings(self) -> dict[str, TunnelHolder]:
        """What is held."""
        return {uid: TunnelHolder.FromString(held.SerializeToString()) for uid, held in self.held.items()}

    def superseded(self, uid: str, number: int) -> None:
        """It is another's."""
        self.lost.append((uid, number))
        self.held.pop(uid, None)


class Gateway:
    """One gateway's presence."""

    def __init__(self, bus: Bus, address: str) -> None:
        self.own = Own()
        self.presence = Presence(bus, address)
        self.presence.of(self.own)
        self.task = asyncio.create_task(self.presence.run(), name=f"presence {address}")

    def take(self, uid: str, number: int) -> None:
        """A tunnel stands here."""
        self.own.held[uid] = TunnelHolder(session=uuid4().hex, number=number)
        self.presence.touch(uid)

    def drop(self, uid: str) -> None:
        """It is gone."""
        del self.own.held[uid]
        self.presence.touch(uid)

    def sees(self, uid: str) -> str:
        """Where the other gateway is that holds a cluster's tunnel; empty for none."""
        holder = self.presence.holder(uid)
        return "" if holder is None else holder.address

    async def die(self) -> None:
        """Without a word."""
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """The gateway's connection, and no bucket yet."""
    found = await Bus.connect(nats_server.url, name="gateway", tls=nats_server.tls(), nkey_seed_file=nats_server.seed_file())
    await found.delete_stream(streams.TUNNELS.name)
    yield found
    await found.delete_stream(streams.TUNNELS.name)
    await found.close()


@asynccontextmanager
async def gateways(bus: Bus) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """Two."""
    pair = (Gateway(bus, "a:1"), Gateway(bus, "b:2"))
    try:
        yield pair
    finally:
        for gateway in pair:
            await gateway.die()


async def test_each_learns_what_the_other_holds(bus: Bus, eventually: Any) -> None:
    """A tunnel that came is known, one that went is not, and neither tells of its own."""
    uid = str(uuid4())
    async with gateways(bus) as (one, two):
        one.take(uid, 1)
        await eventually(lambda: two.sees(uid) == "a:1", within=5)
        assert one.sees(uid) == ""
        one.drop(uid)
        await eventually(lambda: two.sees(uid) == "", within=5)


async def test_the_greatest_number_wins_in_whatever_order_it_is_told(bus: Bus, eventually: Any) -> None:
    """The older tunnel's gateway lets go, also when it tells of it after the newer one was told of."""
    first, second = str(uuid4()), str(uuid4())
    async with gateways(bus) as (one, two):
        one.take(first, 10)
        await eventually(lambda: two.sees(first) == "a:1", within=5)
        two.take(first, 11)
        await eventually(lambda: one.own.lost == [(first, 11)], within=5)
        await eventually(lambda: one.sees(first) == "b:2", within=5)
        two.take(second, 21)
        await eventually(lambda: one.sees(second) == "b:2", within=5)
        one.take(second, 20)
        await eventually(lambda: one.own.lost[-1:] == [(second, 21)], within=5)
        assert not two.own.lost
        assert set(two.own.held) == {first, second}


async def test_one_that_comes_later_learns_everything(bus: Bus, eventually: Any) -> None:
    """A gateway that starts knows at once who holds what."""
    uids = [str(uuid4()) for _ in range(300)]
    async with gateways(bus) as (one, _):
        for number, uid in enumerate(uids):
            one.take(uid, number)
        late = Gateway(bus, "c:3")
        await eventually(lambda: all(late.sees(uid) == "a:1" for uid in uids), within=10)
        await late.die()


async def test_a_bucket_that_was_lost_is_filled_again(bus: Bus, eventually: Any) -> None:
    """The broker forgot everything: whoever holds tunnels says so again, and what ended meanwhile does not come back."""
    kept, ended = str(uuid4()), str(uuid4())
    async with gateways(bus) as (one, two):
        one.take(kept, 1)
        one.take(ended, 2)
        await eventually(lambda: two.sees(kept) == two.sees(ended) == "a:1", within=5)
        await bus.delete_stream(streams.TUNNELS.name)
        one.drop(ended)
        assert two.sees(kept) == "a:1"
        late = Gateway(bus, "c:3")
        await eventually(lambda: late.sees(kept) == "a:1", within=15, what="told again")
        await eventually(lambda: two.sees(ended) == "", within=15, what="forgotten")
        assert late.sees(ended) == ""
        await late.die()


async def test_a_dead_gateway_holds_nothing_after_a_while(bus: Bus, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entries stay in the bucket and mean nothing, not even with a greater number."""
    monkeypatch.setattr(presences, "LAPSE", 1.0)
    monkeypatch.setattr(presences, "_BEAT", 0.2)
    uid = str(uuid4())
    async with gateways(bus) as (one, two):
        one.take(uid, 100)
        await eventually(lambda: two.sees(uid) == "a:1", within=5)
        await one.die()
        await eventually(lambda: two.sees(uid) == "", within=5)
        two.take(uid, 50)
        late = Gateway(bus, "c:3")
        await eventually(lambda: late.sees(uid) == "b:2", within=5)
        assert not two.own.lost
        await late.die()


async def test_what_the_bucket_forgot_by_age_is_told_again(bus: Bus, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel that stands for longer than the bucket remembers is known to a gateway that starts after that."""
    monkeypatch.setattr(presences, "_AFRESH", 0.5)
    monkeypatch.setattr(presences, "_BEAT", 0.2)
    uid = str(uuid4())
    async with gateways(bus) as (one, two):
        one.take(uid, 1)
        await eventually(lambda: two.sees(uid) == "a:1", within=5)
        for sequence, content in (await bus.stored(streams.TUNNELS.name)).items():
            if TunnelHolder.FromString(content).session:
                await bus.remove(streams.TUNNELS.name, sequence)
        late = Gateway(bus, "c:3")
        await eventually(lambda: late.sees(uid) == "a:1", within=5)
        await late.die()


async def test_one_that_stops_says_so(bus: Bus, eventually: Any) -> None:
    """First that it drains, then that it holds nothing."""
    uid = str(uuid4())
    async with gateways(bus) as (one, two):
        one.take(uid, 1)
        await eventually(lambda: two.sees(uid) == "a:1" and two.presence.others, within=5)
        await one.presence.drain()
        await eventually(lambda: two.presence.draining(one.presence.replica), within=5)
        assert not two.presence.others
        await one.die()
        await one.presence.close()
        await eventually(lambda: two.sees(uid) == "", within=5)


class Broker:
    """A broker that takes or refuses, and says what the test says."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.asked: list[float] = []
        self.said: asyncio.Queue[Received] = asyncio.Queue()

    async def ensure_stream(self, _stream: Any) -> None:
        """The bucket is there."""

    async def publish(self, _subject: str, _message: Any, *, timeout: float) -> int:
        """Counts."""
        self.asked.append(asyncio.get_running_loop().time())
        if self.refuses:
            raise Unavailable("full")
        return len(self.asked)

    async def follow(self, _stream: str, *, after: int) -> AsyncIterator[Received]:
        """What is said."""
        while True:
            yield await self.said.get()


async def test_a_broker_that_refuses_is_not_asked_without_pause(eventually: Any) -> None:
    """Such as one whose bucket is there and full."""
    broker = Broker(refuses=True)
    gateway = Gateway(broker, "a:1")  # type: ignore[arg-type] # a double
    await eventually(lambda: len(broker.asked) >= 4, within=10)
    assert broker.asked[3] - broker.asked[0] > 3 * presences._RETRY / 2
    await gateway.die()


async def test_after_an_outage_the_others_get_time_to_be_heard(eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hears itself first does not take the others for dead; who stays silent is, and is forgotten."""
    monkeypatch.setattr(presences, "LAPSE", 0.5)
    broker, uid = Broker(), str(uuid4())
    gateway = Gateway(broker, "a:1")  # type: ignore[arg-type] # a double
    other = TunnelHolder(replica="other", address="b:2", session="s", number=1)
    own = Received(subjects.gateway(gateway.presence.replica), TunnelHolder(replica=gateway.presence.replica).SerializeToString())
    for said in (own, own, Received(subjects.tunnel(uid), other.SerializeToString())):
        broker.said.put_nowait(said)
    await eventually(lambda: gateway.sees(uid) == "b:2", within=5)
    await asyncio.sleep(0.6)  # the outage: longer than a lapse
    for _ in range(2):
        broker.said.put_nowait(own)
    await eventually(broker.said.empty, within=5)
    await asyncio.sleep(0)
    assert gateway.sees(uid) == "b:2"

    async def forgotten() -> bool:
        broker.said.put_nowait(own)
        return not gateway.sees(uid) and not gateway.presence._gateways

    await eventually(forgotten, within=5, every=0.1)
    await gateway.die()
