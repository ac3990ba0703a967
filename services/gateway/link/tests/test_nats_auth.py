"""The broker lets an agent do what its certificate says, and nobody else anything; against a real nats-server."""

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats.errors
import pytest

from deploy.local import part as parts
from deploy.local.part import Part, until_open
from deploy.local.process import Command
from deploy.local.programs import find
from kubegems.agent.v1.events_pb2 import ObservedChange
from libs.bus import Bus, streams, subjects
from libs.bus.connection import Address, client_context, connect_once, flushed
from libs.bus.rates import Rate
from libs.bus.server import Keys, ServerConfig, prove_closed, render
from libs.bus.system import Guest
from libs.faults import Unavailable
from services.gateway.link import nats_auth
from services.gateway.link.nats_auth import NatsAuth, permissions


@dataclasses.dataclass
class House:
    """A broker, its keys, and the gateway's answers."""

    url: str
    keys: Keys
    gateway: tuple[Path, Path, Path]
    ca: Any
    folder: Path
    revoked: set[str]
    asked: asyncio.Event
    stale: asyncio.Event
    auth: NatsAuth

    def tls(self, uri: str, lifetime: timedelta = timedelta(hours=1)) -> tuple[Path, Path, Path]:
        """A certificate with a name of one's choice."""
        name = uuid.uuid4().hex
        self.ca.issue(name, now=datetime.now(UTC), lifetime=lifetime, uri=uri).write(self.folder, name)
        return self.folder / f"{name}.crt", self.folder / f"{name}.key", self.gateway[2]

    def agent_tls(self, uid: str) -> tuple[Path, Path, Path]:
        return self.tls(f"spiffe://kubegems/cluster/{uid}")

    async def agent(self, uid: str) -> Bus:
        return await Bus.connect(self.url, name=f"agent-{uid}", tls=self.agent_tls(uid), inbox_prefix=subjects.inbox(uid))

    async def hub(self) -> Bus:
        return await Bus.connect(self.url, name="gateway", tls=self.gateway, nkey_seed_file=self.keys.seed_file("gateway"))


@pytest.fixture(scope="module")
async def house(tmp_path_factory: Any, hub_certificates: Any, free_ports: Any) -> AsyncIterator[House]:
    """A broker of one's own with the rendered configuration, and the callout at work."""
    folder = tmp_path_factory.mktemp("nats-auth")
    port = free_ports.take("nats-auth")
    keys = Keys.ensure(folder / "keys")

    def tls(name: str) -> tuple[Path, Path, Path]:
        return hub_certificates.certificate(name), hub_certificates.key(name), hub_certificates.ca

    (folder / "nats.conf").write_text(render(ServerConfig(port, folder / "store", tls("nats"), keys)))
    url = f"tls://127.0.0.1:{port}"

    def command() -> Command:
        return Command((find("nats-server"), "-c", str(folder / "nats.conf")), folder / "nats.log")

    revoked: set[str] = set()

    asked, stale = asyncio.Event(), asyncio.Event()

    async def refused(held: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        assert all(int(serial, 16) for _, serial in held)
        found = [(uid, serial) for uid, serial in held if uid in revoked]
        if any(uid == "late" for uid, _ in held) and len(held) == 1:
            asked.set()
            await stale.wait()  # what was read is old by the time it is told
        return found

    async with parts.running(Part("nats", command, lambda: until_open(port))):
        auth = NatsAuth(url, tls("gateway"), keys.folder, refused)
        answering = asyncio.create_task(auth.run(), name="callout")
        found = House(url, keys, tls("gateway"), hub_certificates.authority, folder / "agents", revoked, asked, stale, auth)
        yield found
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


@dataclasses.dataclass
class Client:
    """A bare client and what the broker complained about."""

    nats: Any
    complaints: list[str]

    async def refused(self, act: Any) -> bool:
        """Whether an act draws a permission complaint; the flush behind it proves that it was judged."""
        before = len(self.complaints)
        await act
        await flushed(self.nats)
        return any("ermissions" in complaint for complaint in self.complaints[before:])


@pytest.fixture
async def agent(house: House) -> AsyncIterator[Client]:
    """The agent of cluster `mine`, without our client's manners."""
    complaints: list[str] = []

    async def error(found: Exception) -> None:
        complaints.append(str(found))

    address = Address(house.url, "agent", house.agent_tls("mine"), None, subjects.inbox("mine"))
    client = await connect_once(address, error_cb=error)
    yield Client(client, complaints)
    await client.close()


async def test_agent_publishes_its_own_and_gets_the_ack(house: House) -> None:
    """An agent's change is stored in its cluster's stream, and the hub reads it there."""
    hub, agent = await house.hub(), await house.agent("mine")
    await hub.ensure_stream(streams.cluster("mine"))
    subject = subjects.observed("mine", "apps", "v1", "deployments", "ns")
    assert await agent.publish(subject, ObservedChange(epoch="e", counter=1), id="e.1") == 1
    async with asyncio.timeout(10):
        async for received in hub.follow("CLUSTER_mine", after=0):
            assert received.parse(ObservedChange).epoch == "e"
            break
    await agent.close()
    await hub.close()


async def test_agent_hears_its_hints(house: House) -> None:
    """An agent hears what is meant for it."""
    hub, agent = await house.hub(), await house.agent("mine")
    heard = agent.subscribe(subjects.desired("mine"))
    async with asyncio.timeout(10):
        assert (await anext(heard)).gap
        await hub.hint(subjects.desired("mine"), ObservedChange(epoch="now"))
        assert (await anext(heard)).parse(ObservedChange).epoch == "now"
    await heard.aclose()
    await agent.close()
    await hub.close()


@pytest.mark.parametrize(
    "subject",
    [
        "gems.cluster.other.core.v1.pods.ns", "gems.cluster", "gems.platform.tenancy.tenant-created", "gems.desired.mine",
        "gems.jobs.default", "$JS.API.STREAM.DELETE.CLUSTER_mine", "$JS.API.STREAM.LIST", "$JS.API.CONSUMER.CREATE.PLATFORM",
        "$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING", "$JS.ACK.PLATFORM.x.1.1.1.1.1", "_INBOX_other.x", "_INBOX.x",
    ],
)  # fmt: skip
async def test_agent_publishes_nothing_else(agent: Client, subject: str) -> None:
    """Another cluster's, the platform's and the broker's own subjects are refused."""
    assert await agent.refused(agent.nats.publish(subject, b"x"))


@pytest.mark.parametrize(
    "subject",
    [
        ">", "gems.>", "gems.cluster.mine.>", "gems.cluster.other.>", "gems.desired.other", "gems.desired.*", "gems.interest.>",
        "gems.platform.>", "_INBOX.>", "_INBOX_other.>", "$SYS.>", "$JS.>", "*",
    ],
)  # fmt: skip
async def test_agent_hears_nothing_else(agent: Client, subject: str) -> None:
    """Wildcards, other clusters' hints and inboxes, and the platform's events are refused."""

    async def subscribe() -> None:
        await agent.nats.subscribe(subject)

    assert await agent.refused(subscribe())


async def test_the_same_acts_pass_where_they_are_allowed(agent: Client) -> None:
    """The check above can tell: an agent's own subjects draw no complaint."""
    assert not await agent.refused(agent.nats.publish("gems.cluster.mine.core.v1.pods.ns", b"x"))
    for subject in permissions("mine", "1").subscribe:

        async def subscribe(subject: str = subject) -> None:
            await agent.nats.subscribe(subject)

        assert not await agent.refused(subscribe())


@pytest.mark.parametrize(
    "uri",
    [
        "", "spiffe://kubegems/cluster/", "spiffe://kubegems/cluster/a.b", "spiffe://kubegems/cluster/*", "spiffe://kubegems/cluster/%3E",
        "spiffe://kubegems/hub/gateway", "spiffe://other/cluster/mine", "spiffe://kubegems/cluster/mine/x",
    ],
)  # fmt: skip
async def test_other_certificates_are_refused(house: House, uri: str) -> None:
    """A certificate of the hub's CA without an agent's plain name opens nothing; a hub service's needs its key."""
    with pytest.raises(nats.errors.Error):
        await connect_once(Address(house.url, "x", house.tls(uri)), error_cb=_quiet)


async def test_strangers_are_refused(house: House, tmp_path: Path) -> None:
    """No certificate, or one of another CA, does not get through TLS; the platform's own check agrees."""
    from libs.crypt.ca import Authority  # noqa: PLC0415 -- for the stranger alone

    stranger, _ = Authority.create("stranger", now=datetime.now(UTC))
    stranger.issue("x", now=datetime.now(UTC), lifetime=timedelta(hours=1), uri="spiffe://kubegems/cluster/mine").write(tmp_path, "x")
    own = client_context(tmp_path / "x.crt", tmp_path / "x.key", house.gateway[2])
    for context in (own, client_context(None, None, house.gateway[2])):
        with pytest.raises((nats.errors.Error, OSError, TimeoutError)):
            await connect_once(Address(house.url, "x"), tls=context, error_cb=_quiet)
    await prove_closed(house.url, house.gateway)


async def test_anothers_key_is_refused(house: House, tmp_path: Path) -> None:
    """An agent's certificate with a key that the broker does not know is refused, user and password too."""
    Keys.ensure(tmp_path)
    with pytest.raises(nats.errors.Error):
        await connect_once(Address(house.url, "x", house.tls("spiffe://kubegems/hub/worker"), tmp_path / "worker.nk"), error_cb=_quiet)
    with pytest.raises(nats.errors.Error):
        await connect_once(Address(house.url, "x", house.tls("")), user="gateway", password="gateway", error_cb=_quiet)


async def test_revoked_cluster_is_kicked_and_stays_out(house: House, eventually: Any) -> None:
    """After revocation the connection ends within moments and does not come back; another cluster's goes on."""
    victim, bystander = await house.agent("victim"), await house.agent("bystander")
    assert victim.connected
    house.revoked.add("victim")
    assert await house.auth.revoke("victim") == 1
    await eventually(lambda: not victim.connected, within=2, what="kicked")
    with pytest.raises(Unavailable):
        await victim.publish("gems.cluster.victim.core.v1.pods.ns", ObservedChange(), timeout=1.0)
    assert not victim.connected
    assert bystander.connected
    house.revoked.discard("victim")
    await eventually(lambda: victim.connected, within=10, what="let in again")
    await victim.close()
    await bystander.close()


async def test_whoever_is_woken_puts_out_what_was_revoked(house: House, eventually: Any) -> None:
    """Any gateway does, whichever let the agent in; an agent whose certificate is good goes on."""
    victim, bystander = await house.agent("victim-2"), await house.agent("bystander-2")
    house.revoked.add("victim-2")
    house.auth.wake()
    await eventually(lambda: not victim.connected, within=5, what="put out")
    assert bystander.connected
    await victim.close()
    await bystander.close()


async def test_a_gateway_that_starts_puts_out_what_was_revoked(house: House, eventually: Any) -> None:
    """The one that revoked may have stopped before it got to it."""
    victim = await house.agent("victim-3")

    async def refused(held: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(uid, serial) for uid, serial in held if uid == "victim-3"]

    house.revoked.add("victim-3")
    starting = asyncio.create_task(NatsAuth(house.url, house.gateway, house.keys.folder, refused).run(), name="starting")
    await eventually(lambda: not victim.connected, within=5, what="put out")
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await victim.close()


async def test_who_comes_in_during_a_revocation_is_put_out(house: House, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker's question was answered by what was true a moment before; the look after the revocation came too early."""
    coming = asyncio.create_task(house.agent("late"))
    looked, ended = asyncio.Event(), list[str]()
    look, end = house.auth._end_refused, house.auth._system.end

    async def looks() -> None:
        await look()
        looked.set()

    async def ends(guest: Guest) -> None:
        ended.append(guest.name)
        await end(guest)

    monkeypatch.setattr(house.auth, "_end_refused", looks)
    monkeypatch.setattr(house.auth._system, "end", ends)
    async with asyncio.timeout(5):
        await house.asked.wait()
    house.revoked.add("late")
    house.auth.wake()
    async with asyncio.timeout(5):
        await looked.wait()
    assert not ended
    house.stale.set()
    late = await coming
    await eventually(lambda: ended, within=5, what="let in, and put out")
    await eventually(lambda: not late.connected, within=5)
    await late.close()


async def _nobody(_held: Collection[tuple[str, str]]) -> list[tuple[str, str]]:
    return []


async def test_a_connection_ends_with_its_certificate(house: House, eventually: Any) -> None:
    """No longer than it is good, although the broker looks at certificates only when someone connects; the next one lets in again."""
    tls = house.tls("spiffe://kubegems/cluster/brief", timedelta(seconds=4))
    bus = await Bus.connect(house.url, name="agent-brief", tls=tls, inbox_prefix=subjects.inbox("brief"))
    await eventually(lambda: bus.connected, within=5)
    await eventually(lambda: not bus.connected, within=15, what="ended with its certificate")
    for old, new in zip(tls, house.agent_tls("brief"), strict=True):
        if old != new:
            old.write_bytes(new.read_bytes())
    await eventually(lambda: bus.connected, within=15, what="connected with the renewed one")
    await bus.close()


async def test_too_much_is_put_out(house: House, eventually: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent over its rate is thrown out and kept out for its penalty; one within it goes on."""
    monkeypatch.setattr(nats_auth, "_PENALTY", 1.0)
    strict = NatsAuth(house.url, house.gateway, house.keys.folder, _nobody, rate=Rate(messages=100, seconds=0.3))
    house.auth._put_out = strict._put_out  # both answer the broker's questions, as two replicas would
    watching = asyncio.create_task(strict.run(), name="strict")
    loud, quiet = await house.agent("loud"), await house.agent("quiet")

    async def out() -> bool:
        try:
            for _ in range(50):
                await loud.hint("gems.cluster.loud.core.v1.pods.ns", ObservedChange(), timeout=0.01)
        except Unavailable:
            return True
        return False

    await eventually(out, within=10, every=0.0, what="put out")
    assert quiet.connected
    await eventually(lambda: loud.connected, within=10, what="let in again")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await loud.close()
    await quiet.close()


async def _quiet(_error: Exception) -> None:
    """The refusal is what the test looks at."""
