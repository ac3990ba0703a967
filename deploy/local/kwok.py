"""Simulated nodes: KWOK, with stages of our own, and `exec` that can hurt nobody.

What users type into `exec` runs on this machine, in a PID and mount namespace of KWOK's own, so that it sees no other
process and none outlives KWOK. As root it runs as an account that nothing belongs to; otherwise the namespace is a user's,
and the home folder, `.local` and `/tmp` are empty in it. Where the machine allows no namespaces, `exec` is off.
"""

from __future__ import annotations

import asyncio
import os
import string
from pathlib import Path

from deploy.local import cache
from deploy.local.control import ControlPlane
from deploy.local.kubectl import Kubectl
from deploy.local.part import Part
from deploy.local.process import Command
from libs.crypt import ca

POD_CIDR = "10.244.0.0/16"
_HERE = Path(__file__).with_name("nodes")
_EXEC_UID = 61_543  # nothing on a machine belongs to it
_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
_USER_NAMESPACES = ("unshare", "--user", "--map-root-user", *_NAMESPACES[1:])
_LINES = (
    "this is a simulated container: it runs no image",
    "its node is KWOK; exec, logs, attach and port-forward speak the real protocols",
    "listening on :8080",
)
# Makes the account known (KWOK looks it up), for KWOK and its children alone. Laid over the whole folder: a mount on the
# file itself would vanish when the machine's own account file is replaced, as by an installation.
_NAMED = (
    'mount -t overlay overlay -o "lowerdir=$1/etc:/etc" /etc '
    '|| { mount --bind "$1/etc/passwd" /etc/passwd; mount --bind "$1/etc/group" /etc/group; }; shift; exec "$@"'
)
# Opens KWOK's files, hides what is the user's, then becomes KWOK, which reaches them by descriptors 3 to 7; what
# containers log is read by path, so it is copied into the last hidden folder.
_HIDE = (
    'exec 3<"$1" 4<"$2" 5<"$3" 6<"$4" 7<"$5" 8<"$6"; shift 6; '
    'for folder in $HIDDEN; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done; '
    'cat <&8 >"$folder/container.log"; unset HIDDEN folder; cd /; exec /proc/self/fd/3 "$@"'
)


class Kwok:
    """The simulator of one cluster's nodes.

    Args:
        folder: its configuration.
        log: its log file.
        control: the control plane it belongs to.
        port: of its kubelet endpoint.
        hidden: folders that typed commands must not see, where accounts cannot tell them apart.
    """

    def __init__(self, folder: Path, log: Path, control: ControlPlane, port: int, *, hidden: tuple[Path, ...] = ()) -> None:
        self.folder = folder
        self._log = log
        self._control = control
        self._port = port
        self._hidden = hidden
        self._wrapper: tuple[str, ...] = ()
        self.exec_works = False
        self.binary = Path()

    async def prepare(self) -> None:
        """Finds out what isolation there is, writes the configuration and makes the node objects."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        wanted = _NAMESPACES if cache.is_root() else _USER_NAMESPACES
        self.exec_works = await _works(wanted)
        self._wrapper = wanted if self.exec_works else ()
        if cache.is_root():
            for name, line in (
                ("passwd", f"kubegems-exec:x:{_EXEC_UID}:{_EXEC_UID}::/:/bin/sh"),
                ("group", f"kubegems-exec:x:{_EXEC_UID}:"),
            ):
                (self.folder / "etc").mkdir(exist_ok=True)
                (self.folder / "etc" / name).write_text((Path("/etc") / name).read_text().rstrip() + f"\n{line}\n")
                (self.folder / "etc" / name).chmod(0o644)
        (self.folder / "container.log").write_text(
            "".join(f"2026-01-01T00:00:0{n}.000000000Z stdout F {line}\n" for n, line in enumerate(_LINES))
        )
        values = {
            "log": str(self.folder / "container.log")
            if cache.is_root() or not self.exec_works
            else str(self._hidden[-1] / "container.log"),
            "exec_user": f"{{runAsUser: {_EXEC_UID}, runAsGroup: {_EXEC_UID}}}" if cache.is_root() else "null",
        }
        sources = ["stages.yaml", "pods.yaml", *(["exec.yaml"] if self.exec_works else [])]
        documents = [(_HERE / name).read_text() for name in sources]
        ca.write_private(
            self.folder / "kwok.yaml", string.Template("\n---\n".join(documents[1:])).substitute(values) + "\n---\n" + documents[0]
        )
        await Kubectl(self._control.kubeconfig()).apply((_HERE / "cluster.yaml").read_text())

    def part(self) -> Part:
        """The part for the starter."""
        return Part("kwok", self._command, self._ready, self.prepare)

    def _command(self) -> Command:
        plane = self._control
        files = [plane.kubeconfig("kwok"), self.folder / "kwok.yaml", plane.folder / "kubelet.crt", plane.folder / "kubelet.key"]
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # all that typed commands inherit
        if self._wrapper == _USER_NAMESPACES:
            env["HIDDEN"] = " ".join(str(folder) for folder in self._hidden)
            opened = [str(path) for path in (self.binary, *files, self.folder / "container.log")]
            inside = self._flags(*(f"/proc/self/fd/{number}" for number in range(4, 8)))
            argv = (*self._wrapper, "sh", "-ec", _HIDE, "kwok", *opened, *inside)
        elif self._wrapper == _NAMESPACES:
            argv = (*self._wrapper, "sh", "-ec", _NAMED, "kwok", str(self.folder), str(self.binary), *self._flags(*map(str, files)))
        else:
            argv = (str(self.binary), *self._flags(*map(str, files)))
        return Command(argv, self._log, env=env, patience=5, whole_group=True)

    def _flags(self, kubeconfig: str, config: str, certificate: str, key: str) -> tuple[str, ...]:
        return (
            *(f"--kubeconfig={kubeconfig}", f"--config={config}", f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}"),
            *("--manage-all-nodes", f"--cidr={POD_CIDR}", "--node-ip=127.0.0.1", f"--node-port={self._port}"),
            *(f"--server-address=127.0.0.1:{self._port}", "--node-lease-duration-seconds=40"),
        )

    async def _ready(self) -> None:
        kubectl = Kubectl(self._control.kubeconfig())
        await kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=55s", within=58)


async def _works(wrapper: tuple[str, ...]) -> bool:
    """Whether this machine lets us make such namespaces."""
    try:
        process = await asyncio.create_subprocess_exec(
            *wrapper,
            "true",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=dict(os.environ),
        )
    except OSError:
        return False
    return await process.wait() == 0
