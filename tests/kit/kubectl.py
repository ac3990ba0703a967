"""kubectl as a user runs it, with a kubeconfig of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Done:
    """What a command said."""

    code: int
    out: str
    err: str

    def ok(self) -> str:
        """Its output; fails the test when the command failed."""
        assert self.code == 0, f"exit {self.code}: {self.err}\n{self.out}"
        return self.out


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs the pinned kubectl of the virtual environment."""

    kubeconfig: Path
    home: Path
    namespace: str = "default"

    async def __call__(self, *args: str, stdin: str = "", websockets: bool = True, seconds: float = COMMAND_SECONDS) -> Done:
        """One command; killed when it takes longer than `seconds`."""
        process = await self.start(*args, websockets=websockets)
        try:
            async with asyncio.timeout(seconds):
                out, err = await process.communicate(stdin.encode())
        except TimeoutError:
            process.kill()
            out, err = await process.communicate()
            raise AssertionError(f"kubectl {' '.join(args)} took longer than {seconds} s: {out.decode()} {err.decode()}") from None
        return Done(process.returncode or 0, out.decode(), err.decode())

    async def json(self, *args: str) -> Any:
        """The object or list that a `get` prints."""
        return json.loads((await self(*args, "-o", "json")).ok())

    async def start(self, *args: str, websockets: bool = True) -> asyncio.subprocess.Process:
        """A command that goes on; the caller ends it."""
        pipe = asyncio.subprocess.PIPE
        env = {
            "KUBECONFIG": str(self.kubeconfig),
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "KUBECTL_REMOTE_COMMAND_WEBSOCKETS": str(websockets).lower(),
            "KUBECTL_PORT_FORWARD_WEBSOCKETS": str(websockets).lower(),
        }
        program = str(Path(sys.prefix) / "bin" / "kubectl")
        given = ("--namespace", self.namespace, *args)
        return await asyncio.create_subprocess_exec(program, *given, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
