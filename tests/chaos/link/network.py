"""Where the relay stands: a network namespace of its own, with one cable to the agents and one to the hub that can be unplugged.

Making a namespace needs `ip` (Debian's iproute2) and root, or a user namespace around everything (`within_namespaces`). Without
them the relay stands on the loopback, says so, and an unplugged cable is a relay that passes nothing on: both ends' kernels
still see each other's acknowledgements.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

AGENTS, HUB = "agents", "hub"
_CLONE_NEWNET = 0x40000000
_LOOPBACK = "127.0.0.1"
_INSIDE = "KUBEGEMS_CHAOS_INSIDE"
_UNSHARE = ("unshare", "--user", "--map-current-user", "--keep-caps", "--net", "--mount")
_PREPARE = ("sh", "-ec", 'mount -t tmpfs tmpfs /run; PATH="$PATH:/usr/sbin:/sbin" ip link set lo up; exec "$@"', "sh")


def within_namespaces() -> None:
    """Starts this program anew where it may make namespaces, unless it may already, or this machine has no user namespaces."""
    if os.geteuid() == 0 or _INSIDE in os.environ:
        return
    command = (*_UNSHARE, *_PREPARE)
    if shutil.which(_UNSHARE[0]) and subprocess.run((*command, "true"), check=False, capture_output=True).returncode == 0:
        os.execvpe(command[0], (*command, *sys.orig_argv), os.environ | {_INSIDE: "1"})  # noqa: S606 -- no shell is the point


class Loopback:
    """No namespace.

    Attributes:
        relay: address at which agents find the relay.
        hub: address at which the relay finds the hub.
        kernel: whether cables are the kernel's.
    """

    kernel = False
    relay = hub = _LOOPBACK

    async def socket(self) -> socket.socket:
        """A TCP socket at the relay's place."""
        return _tcp()

    async def plug(self, cable: str, *, into: bool) -> None:
        """The relay itself stops passing on."""


class Namespace(Loopback):
    """A network namespace with two cables."""

    kernel = True

    def __init__(self) -> None:
        pid = os.getpid()
        net = f"198.{18 + pid // 8192 % 2}.{pid // 32 % 256}."
        first = pid % 32 * 8
        self.name = f"kubegems-{pid}"
        self._ours = {AGENTS: f"{net}{first + 1}", HUB: f"{net}{first + 5}"}
        self._theirs = {AGENTS: f"{net}{first + 2}", HUB: f"{net}{first + 6}"}
        self.relay, self.hub = self._theirs[AGENTS], self._ours[HUB]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="namespace")

    async def make(self) -> None:
        """Makes namespace and cables; OSError where that is not allowed."""
        await _ip("netns", "add", self.name)
        await _ip("-n", self.name, "link", "set", "lo", "up")
        for cable in (AGENTS, HUB):
            ours, theirs = _ends(cable)
            await _ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
            await _ip("link", "set", theirs, "netns", self.name)
            await _ip("address", "add", f"{self._ours[cable]}/30", "dev", ours)
            await _ip("-n", self.name, "address", "add", f"{self._theirs[cable]}/30", "dev", theirs)
            await _ip("link", "set", ours, "up")
            await _ip("-n", self.name, "link", "set", theirs, "up")
        await asyncio.get_running_loop().run_in_executor(self._thread, self._enter)

    async def remove(self) -> None:
        """Takes all away."""
        self._thread.shutdown()
        for cable in (AGENTS, HUB):
            with contextlib.suppress(OSError):
                await _ip("link", "delete", _ends(cable)[0])
        with contextlib.suppress(OSError):
            await _ip("netns", "delete", self.name)

    async def socket(self) -> socket.socket:
        """A TCP socket that lives in the namespace, wherever it is used."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _tcp)

    async def plug(self, cable: str, *, into: bool) -> None:
        """An unplugged cable carries nothing and tells nobody."""
        await _ip("-n", self.name, "link", "set", _ends(cable)[1], "up" if into else "down")

    def _enter(self) -> None:
        """A thread may be in another network than its process."""
        namespace = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)


def _tcp() -> socket.socket:
    """A TCP socket of the calling thread's network."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


@contextlib.asynccontextmanager
async def network() -> AsyncIterator[Loopback]:
    """A namespace, or the loopback with a note."""
    made = Namespace()
    try:
        await made.make()
    except OSError as error:
        await made.remove()
        print(f"NOTE: no network namespace here ({error}): the relay stands on the loopback, half-open links are only stalled ones")
        yield Loopback()
        return
    print(f"the relay stands in network namespace {made.name}")
    try:
        yield made
    finally:
        await made.remove()


def _ends(cable: str) -> tuple[str, str]:
    pid = os.getpid()
    return f"kg{cable[0]}{pid}", f"kg{cable[0]}{pid}r"


async def _ip(*arguments: str) -> None:
    program = shutil.which("ip") or next((p for p in ("/sbin/ip", "/usr/sbin/ip") if Path(p).exists()), "")
    if not program:
        raise OSError("there is no `ip`; install iproute2")
    process = await asyncio.create_subprocess_exec(program, *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
    _, told = await process.communicate()
    if process.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {told.decode().strip()}")
