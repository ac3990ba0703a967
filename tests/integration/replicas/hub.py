"""The hub of these tests, and what they ask it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import asyncpg

from tests.kit.agents import SimulatedAgent
from tests.kit.eventually import eventually
from tests.kit.gateway import PASSWORD
from tests.kit.nats import NatsServer
from tests.kit.replicas import GatewayProcess
from tests.kit.rest import User, nobody

AGENTS = 50


class Hub:
    """Gateways and agents.

    Attributes:
        gateways: two.
        agents: fifty, which know both gateways.
        nats: the broker.
        admins: an admin's client of each gateway; one session.
    """

    def __init__(self, gateways: Sequence[GatewayProcess], agents: Sequence[SimulatedAgent], nats: NatsServer, dsn: str) -> None:
        self.gateways, self.agents, self.nats, self.dsn = gateways, agents, nats, dsn
        self.admins: list[User] = []

    @property
    def addresses(self) -> str:
        """Where agents may dial."""
        return ",".join(gateway.config.tunnel_address for gateway in self.gateways)

    @asynccontextmanager
    async def signed_in(self) -> AsyncIterator[None]:
        """Holds the admins' clients."""
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(nobody(g.config.public_url, g.config.ca_file)) for g in self.gateways]
            token = (await clients[0].sign_in("admin", PASSWORD)).token
            self.admins = [User(c.base, c.tls, c.session, token) for c in clients]
            yield

    async def sql(self, query: str, *args: Any) -> list[Any]:
        """Rows of the hub's database."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return list(await connection.fetch(query, *args))
        finally:
            await connection.close()

    async def whole(self) -> None:
        """Starts what does not run, and waits until every agent is online and each gateway knows where."""
        for gateway in self.gateways:
            await gateway.start()
        await eventually(self.all_online, within=20, what="all online")
        await eventually(self.all_reached, within=20, what="all reached through both")

    async def holders(self) -> Counter[str]:
        """How many clusters are online at each gateway, by its id."""
        return Counter(row["holder"] for row in await self.sql("SELECT holder FROM fleet.clusters WHERE online"))

    async def all_online(self) -> bool:
        """Whether every cluster is online, and its agent connected."""
        return sum((await self.holders()).values()) == AGENTS and all(agent.link.connected for agent in self.agents)

    async def all_reached(self) -> bool:
        """Whether every cluster answers through every gateway that runs."""
        running = [i for i, gateway in enumerate(self.gateways) if gateway.running]
        return all(await asyncio.gather(*(self.reached(i, agent) for i in running for agent in self.agents)))

    async def reached(self, gateway: int, agent: SimulatedAgent) -> bool:
        """Whether a cluster answers through a gateway, as itself and to the caller."""
        answer = await self.admins[gateway].call("GET", f"//k8s/clusters/{agent.name}/version")
        assert answer.status == 200, f"{agent.name} through {gateway}: {answer.status} {answer.body}"
        return (answer.body["cluster"], answer.body["user"]) == (agent.uid, "gems:user:admin")

    def at(self, agent: SimulatedAgent) -> int:
        """At which gateway an agent is connected."""
        return [g.config.tunnel_address for g in self.gateways].index(agent.link.address)

    def one_at(self, gateway: int) -> SimulatedAgent:
        """An agent that is connected to a gateway."""
        return next(agent for agent in self.agents if self.at(agent) == gateway)

    async def put_one_at(self, gateway: int) -> SimulatedAgent:
        """The same, made so when there is none."""
        if all(self.at(agent) != gateway for agent in self.agents):
            agent = self.agents[0]
            await agent.stop()
            agent.start(self.addresses, first=self.gateways[gateway].config.tunnel_address)
            await agent.link.wait_connected()
            await eventually(self.all_reached, within=10)
        return self.one_at(gateway)

    @asynccontextmanager
    async def upgraded(self, gateway: int, agent: SimulatedAgent) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """An exec of a cluster through a gateway: what is sent comes back."""
        user = self.admins[gateway]
        host, _, port = user.base.rpartition("//")[2].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port), ssl=user.tls)
        path = f"/k8s/clusters/{agent.name}/api/v1/namespaces/default/pods/p/exec?command=cat"
        lines = (
            f"POST {path} HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Bearer {user.token}",
            "Connection: Upgrade",
            "Upgrade: SPDY/3.1",
        )
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        async with asyncio.timeout(20):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        try:
            yield reader, writer
        finally:
            writer.close()

    @asynccontextmanager
    async def watching(self, gateway: int, agent: SimulatedAgent) -> AsyncIterator[aiohttp.ClientResponse]:
        """A watch of a cluster through a gateway, whose first event has come."""
        user = self.admins[gateway]
        async with user.session.get(
            f"{user.base}/k8s/clusters/{agent.name}/api/v1/pods?watch=true",
            headers={"Authorization": f"Bearer {user.token}"}, ssl=user.tls, timeout=aiohttp.ClientTimeout(total=60),
        ) as reply:  # fmt: skip
            assert reply.status == 200, await reply.text()
            assert b'"number":0' in await reply.content.readline()
            yield reply
