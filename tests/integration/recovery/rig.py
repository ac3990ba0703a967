"""A platform whose hub can be taken apart under its agent, and the commands of the documentation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.local.certificates import Certificates
from deploy.local.layout import Layout
from tests.kit.eventually import eventually
from tests.kit.platform import Platform
from tests.kit.rest import User, nobody

ROOT = Path(__file__).parents[3]
HUB = ("gateway", "msgbus", "worker")
SHOP = "/tenants/acme/projects/shop/environments"
QUOTA = {"limits.cpu": "20", "limits.memory": "40Gi", "requests.storage": "100Gi"}
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(slots=True)
class Hub:
    """The hub of a platform."""

    platform: Platform

    @property
    def layout(self) -> Layout:
        """Its folders."""
        return self.platform.layout

    @property
    def agent_settings(self) -> dict[str, str]:
        """The environment of the agent that runs."""
        entries = Path(f"/proc/{self.platform.pid('agent')}/environ").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    async def stop(self, *parts: str) -> None:
        """Stops parts, which stay stopped."""
        for part in parts:
            kept = self.platform.stack.supervisor.kept[part]
            assert kept.watch is not None
            kept.watch.cancel()
            assert kept.process is not None
            await kept.process.stop()
            kept.state = "stopped"

    async def start(self, *parts: str) -> None:
        """Starts parts, which are kept running again."""
        supervisor = self.platform.stack.supervisor

        async def one(part: str) -> None:
            kept = supervisor.kept[part]
            await supervisor._start(kept)
            kept.watch = asyncio.create_task(supervisor._watch(kept), name=f"watch {part}")

        await asyncio.gather(*(one(part) for part in parts))

    async def restart(self) -> None:
        """The hub with NATS, with certificates of the CA as it now is: what an operator does after each step."""
        await self.stop("worker", "msgbus", "gateway", "nats")
        Certificates(self.layout.certificates).renew()
        await self.start("nats")
        await self.start("gateway")
        await self.start("msgbus", "worker")

    async def rotation(self, step: str, *more: str) -> tuple[int, str]:
        """Exit code and words of a step of the rotation."""
        folder = self.layout.certificates
        files = ("--ca-file", str(folder / "ca.crt"), "--ca-key-file", str(folder / "ca.key"))
        database = ("--database-url-file", str(self.layout.secrets / "database.url"))
        return await self.shell(" ".join((sys.executable, "-m", "services.gateway.fleet.rotation", step, *files, *database, *more)))

    async def shell(self, script: str, **variables: str) -> tuple[int, str]:
        """Exit code and output of a script, as an operator runs it in the project's folder."""
        path = f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}", "HUB": str(self.layout.root)} | variables
        process = await asyncio.create_subprocess_exec(
            "bash", "-ec", script, cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[User]:
        """The admin, who trusts the CAs as they now are."""
        endpoints = self.platform.endpoints
        async with nobody(endpoints["rest"], Path(endpoints["ca"])) as anyone:
            yield await anyone.sign_in("admin", Path(endpoints["admin_password_file"]).read_text().strip())

    async def joined_again(self, join: Any) -> None:
        """The agent, started anew with what the answer to another join token holds."""
        file = self.layout.secrets / "join.token"
        file.touch(0o600)
        file.write_text(join["token"])
        env = self.agent_settings | {"KUBEGEMS_AGENT_CA_HASH": join["caHash"], "KUBEGEMS_AGENT_JOIN_TOKEN_FILE": str(file)}
        kept = self.platform.stack.supervisor.kept["agent"]
        command = replace(kept.part.command(), env=env)
        kept.part = replace(kept.part, command=lambda: command)
        await self.stop("agent")
        await self.start("agent")

    async def online(self, *, within: float = 60) -> Any:
        """The cluster, once it is ONLINE and asks for nothing."""

        async def check() -> Any:
            async with self.admin() as admin:
                shown = await admin.get("/clusters/local")
            assert shown["state"] == "ONLINE", shown
            return shown

        return await eventually(check, within=within, every=0.3, what="online")

    async def ready(self, name: str, *, within: float = 30, cpu: str = "") -> Any:
        """An environment, once it is READY and has that CPU limit."""

        async def check() -> Any:
            async with self.admin() as admin:
                shown = await admin.get(f"{SHOP}/{name}")
            assert shown["state"] == "READY", shown
            assert not cpu or shown["quota"]["limits.cpu"] == cpu, shown
            return shown

        return await eventually(check, within=within, every=0.2, what=f"{name} ready")


def commands(page: str) -> list[str]:
    """The shell blocks of a page of the documentation, in order."""
    return _BLOCK.findall((ROOT / "docs" / page).read_text())


async def furnish(hub: Hub) -> None:
    """A tenant with a project."""
    await hub.online()
    async with hub.admin() as admin:
        await admin.post("/tenants", {"tenantId": "acme", "tenant": {"displayName": "Acme"}})
        await admin.put("/tenants/acme/quotas/local", {"hard": QUOTA})
        await admin.post("/tenants/acme/projects", {"projectId": "shop", "project": {}})


async def environment(hub: Hub, name: str, cpu: str = "1") -> Any:
    """A new environment; hints reach the agent, or it would take minutes."""
    async with hub.admin() as admin:
        body = {"environmentId": name, "environment": {"cluster": "clusters/local", "quota": {"limits.cpu": cpu}}}
        await admin.post(SHOP, body)
    return await hub.ready(name)
