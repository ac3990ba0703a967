"""The whole platform on this machine: starts it, keeps it running, stops it. The starter and the e2e tests use it alike."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine
from typing import Any

from deploy.local import build, site
from deploy.local.collector import Jaeger
from deploy.local.errors import LocalError
from deploy.local.hubparts import HubParts
from deploy.local.layout import Layout
from deploy.local.memberparts import MemberParts
from deploy.local.options import Options
from deploy.local.ports import Ports
from deploy.local.publish import Publisher
from deploy.local.supervise import Supervisor

_DISK = 1 << 30  # bytes a stack may need before anyone should worry
_RENEWAL = 24 * 3600.0


class Stack:
    """One platform.

    Args:
        layout: its folders; locked by us.
        options: what is wanted.
        say: tells people one line.
    """

    def __init__(self, layout: Layout, options: Options, say: Callable[[str], None]) -> None:
        self.layout = layout
        self._options = options
        self._say = say
        self._ports = Ports(layout.ports, wanted=options.ports, documented=options.documented_ports)
        self.hub = HubParts(layout, options, self._ports)
        self.members = [self.member(name) for name in site.names(options.clusters)]
        self._publisher = Publisher(layout)
        self.supervisor = Supervisor(say, self._publish)
        self._tasks: list[asyncio.Task[None]] = []
        self.hub_ready = asyncio.Event()
        self.joined = asyncio.Event()
        self.traced = asyncio.Event()
        self._env: dict[str, str] = {}

    def member(self, name: str) -> MemberParts:
        """A member cluster that may be started and joined."""
        return MemberParts(self.layout, self._options, self._ports, self._say, name)

    async def start(self) -> None:
        """Starts the hub and returns; the member clusters are built, started and joined meanwhile. Raises LocalError."""
        free = shutil.disk_usage(self.layout.root).free
        wanted = _DISK * max(len(self.members), 1)
        if free < wanted:
            raise LocalError(f"too little disk: {self.layout.root} has {free >> 20} MiB free, KubeGems wants {wanted >> 20}")
        await self.hub.prepare()
        jaeger = Jaeger(self.layout.root / "jaeger", self.layout.logs / "jaeger.log", self._ports) if self._options.jaeger else None
        if jaeger:
            self._env["OTEL_EXPORTER_OTLP_ENDPOINT"] = jaeger.otlp
            self._spawn("jaeger", self._run_jaeger(jaeger))
        else:
            self.traced.set()
        self._spawn("member clusters", self._run_members())
        await self.supervisor.start(*self.hub.stores())
        for gateway in self.hub.gateways(self._env):  # one after the other: the first makes the database's tables
            await self.supervisor.start(gateway)
        await self.supervisor.start(*(self.hub.inner(name, self._env) for name in ("msgbus", "worker")))
        for line in self._ports.moved:
            self._say(line)
        self._publisher.facts |= {
            "rest": self.hub.rest,
            "grpc": self.hub.grpc,
            "nats": self.hub.nats_url,
            "ca": str(self.hub.certificates.ca),
            "admin_password_file": str(self.layout.admin_password),
        }
        self._publish()
        self._spawn("renewal", self._renew())
        self.hub_ready.set()

    async def up(self) -> None:
        """Starts the hub and returns once the member clusters have joined and Jaeger, if wanted, takes spans."""
        await self.start()
        await self.joined.wait()
        await self.traced.wait()

    async def stop(self) -> None:
        """Stops all and withdraws what says that it runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.supervisor.stop()
        self.hub.close()
        self.layout.withdraw()

    async def failure(self) -> LocalError:
        """Waits for what the stack cannot outlive."""
        return await asyncio.shield(self.supervisor.failed)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        async def owned() -> None:
            try:
                await work
            except LocalError as error:
                if not self.supervisor.failed.done():
                    self.supervisor.failed.set_result(error)

        self._tasks.append(asyncio.create_task(owned(), name=name))

    async def _run_members(self) -> None:
        for member in self.members:
            await member.start_control_plane(self.supervisor)
            await self.hub_ready.wait()
            await self.join(member, self.supervisor)
            if member.name == site.FIRST:
                self._publisher.facts |= member.facts
            self._publisher.clusters[member.name] = member.facts
            self._publish()
        self.joined.set()

    async def join(self, member: MemberParts, supervisor: Supervisor) -> None:
        """Joins a cluster whose control plane serves; the supervisor keeps its agent and controller."""
        await member.join(self.hub, supervisor, self._env)

    async def _run_jaeger(self, jaeger: Jaeger) -> None:
        if not await build.cached(build.JAEGER):
            await self.joined.wait()  # two cores build one thing at a time
        jaeger.binary = await build.binary(build.JAEGER, self._say)
        await self.supervisor.start(jaeger.part())
        self._publisher.facts["jaeger"] = jaeger.url
        self._publish()
        self.traced.set()

    async def _renew(self) -> None:
        """Certificates and tokens get new ones long before they end; services read them anew."""
        while True:
            await asyncio.sleep(_RENEWAL)
            self.hub.certificates.renew()
            with contextlib.suppress(LocalError):  # tomorrow is early enough
                for member in self.members:
                    await member.renew_tokens()

    def _publish(self) -> None:
        if self._publisher.facts:
            self._publisher.publish(self.supervisor)
