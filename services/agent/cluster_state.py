"""State in the cluster, for an agent in a pod: its folder goes with the pod, so Secret and ConfigMap `gems-agent` hold a copy.

The Secret holds the identity, the ConfigMap what is remembered of the hub's wishes; both are in the agent's own namespace,
where its role names them. A pod that starts writes them into its folder, and each change goes into them; the next key is
there before the hub hears of it. Only the holder of Lease `gems-agent` may read or write them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs import log
from libs.clock import Clock, new_id
from libs.crypt import ca
from libs.faults import Fault, NotFound
from libs.kube import KubeClient, Resource
from libs.kube.resources import CONFIG_MAPS, SECRETS
from libs.reconcile import Election
from services.agent.desired.kept import Progress, parse

NAME = "gems-agent"
MANAGER = "gems-agent-state"
LEASE_SECONDS = 10
MOST = 700 * 1024  # bytes of a ConfigMap's copy of the set; an object may have a megabyte
_IDENTITY = ("agent.pem", "next.key", "ca.crt", "cluster.json")
_SET, _PROGRESS = "desired.bin", "desired.json"
_PAUSE = (0.5, 30.0)
_log = log.get(__name__)


class LeaseLost(Exception):
    """Another agent may lead now: this one ends, and starts anew."""


class ClusterState:
    """Keeps the copy.

    Args:
        client: as the agent's ServiceAccount.
        namespace: the agent's own.
        folder: the agent's state folder.
    """

    def __init__(self, client: KubeClient, namespace: str, folder: Path) -> None:
        self._client, self._namespace, self._folder = client, namespace, folder
        self._changed = asyncio.Event()

    async def restore(self) -> None:
        """Writes what the cluster holds into the folder; waits while the API server is away."""
        found = await self._read(SECRETS)
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in _IDENTITY:
            if name in found:
                ca.write_private(self._folder / name, found[name].decode())
            elif found:
                (self._folder / name).unlink(missing_ok=True)
        for key, content in (await self._remembered()).items():
            uid, _, name = key.partition(".")
            folder = self._folder / "desired" / uid
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (folder / name).write_bytes(content)

    async def _remembered(self) -> dict[str, bytes]:
        """What is remembered of the hub's wishes; waits while it is damaged, since to forget in silence whom it followed is not safe."""
        while True:
            try:
                return _unpacked(await self._read(CONFIG_MAPS))
            except (zlib.error, DecodeError, ValueError, TypeError) as error:
                remedy = f"restore ConfigMap {NAME}, or delete it to follow the hub from scratch"
                _log.error("state.damaged", cause=type(error).__name__, remedy=remedy)
                await asyncio.sleep(random.uniform(_PAUSE[1] / 10, _PAUSE[1] / 5))  # noqa: S311 -- jitter

    async def save_identity(self) -> None:
        """Copies the identity; raises Fault when the cluster does not take it."""
        files = {name: self._folder / name for name in _IDENTITY}
        data = {name: file.read_bytes() for name, file in files.items() if file.exists()}
        body = {"metadata": self._metadata(), "type": "Opaque", "data": _encoded(data)}
        await self._client.apply(SECRETS, body, field_manager=MANAGER, force=True)

    def poke(self) -> None:
        """What is remembered of the hub's wishes has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Copies it after each change, until cancelled."""
        delay = _PAUSE[0]
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self.save_desired()
                delay = _PAUSE[0]
            except Fault as fault:
                _log.warning("state.not_saved", reason=fault.reason, problem=fault.message)
                self._changed.set()
                delay = min(2 * delay, _PAUSE[1])
            await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311 -- jitter

    async def save_desired(self) -> None:
        """Copies set and progress of each cluster uid that there is a folder for."""
        data: dict[str, bytes] = {}
        for folder in self._folder.glob("desired/*"):
            content = await asyncio.to_thread(_copy, folder)
            data |= {f"{folder.name}.{name}": packed for name, packed in content.items()}
        body = {"metadata": self._metadata(), "binaryData": _encoded(data)}
        await self._client.apply(CONFIG_MAPS, body, field_manager=MANAGER, force=True)

    def _metadata(self) -> dict[str, Any]:
        return {"name": NAME, "namespace": self._namespace, "labels": {"app.kubernetes.io/part-of": "kubegems"}}

    async def _read(self, resource: Resource) -> dict[str, bytes]:
        delay = _PAUSE[0]
        while True:
            try:
                found = await self._client.get(resource, NAME, self._namespace)
            except NotFound:
                return {}
            except Fault as fault:
                _log.warning("state.not_read", reason=fault.reason, problem=fault.message)
                await asyncio.sleep(random.uniform(delay / 2, delay))  # noqa: S311 -- jitter
                delay = min(2 * delay, _PAUSE[1])
                continue
            field = found.get("data" if resource is SECRETS else "binaryData") or {}
            return {name: base64.b64decode(value) for name, value in field.items()}


def _unpacked(data: dict[str, bytes]) -> dict[str, bytes]:
    """The files in a ConfigMap, which can be read."""
    found = {key: zlib.decompress(content) for key, content in data.items() if key.partition(".")[2] in (_SET, _PROGRESS)}
    for key, content in found.items():
        if key.endswith(_SET):
            parse(wire.FetchDesiredStateResponse.FromString(content))
        else:
            Progress(**orjson.loads(content))
    return found


def _copy(folder: Path) -> dict[str, bytes]:
    """Set and progress, compressed; of a set that is too large only which hub and generation it is, to be fetched again."""
    found: dict[str, bytes] = {}
    for name in (_SET, _PROGRESS):
        with contextlib.suppress(FileNotFoundError):
            found[name] = zlib.compress((folder / name).read_bytes(), 6)
    if len(found.get(_SET, b"")) > MOST:
        with contextlib.suppress(DecodeError, FileNotFoundError):
            whole = wire.FetchDesiredStateResponse.FromString((folder / _SET).read_bytes())
            short = wire.FetchDesiredStateResponse(
                hub_uid=whole.hub_uid, generation=whole.generation, confirmed_generation=whole.confirmed_generation, paused=whole.paused
            )
            return {_SET: zlib.compress(short.SerializeToString())}
        del found[_SET]
    return found


def _encoded(data: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(content).decode() for name, content in data.items()}


async def lead(client: KubeClient, namespace: str, clock: Clock, spawn: Callable[..., Any]) -> None:
    """Returns once this process holds Lease `gems-agent`; a spawned task ends it when the lease is lost.

    Args:
        client: as the agent's ServiceAccount.
        namespace: of the lease.
        clock: for the times that people read in it.
        spawn: owns tasks; one that ends ends the process.
    """
    won, lost = asyncio.Event(), asyncio.Event()
    identity = f"{socket.gethostname()}-{os.getpid()}-{new_id().hex[-6:]}"
    election = Election(client, namespace=namespace, name=NAME, identity=identity, clock=clock, duration=LEASE_SECONDS)

    async def work() -> None:
        won.set()
        try:
            await asyncio.Event().wait()
        finally:
            lost.set()

    async def guard() -> None:
        await lost.wait()
        raise LeaseLost("another agent may lead now")

    spawn("lease", election.run(work))
    await won.wait()
    spawn("lease guard", guard())
