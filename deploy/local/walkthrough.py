"""Runs the README's walk-through: the commands that stand there, against a running stack, comparing with the output that stands there.

In the section `## Walk-through`, each fenced `sh` block is run, all in one bash session that has read the stack's `env`
file. A fenced `text` block after it is what it must print: `…` stands for anything in a line, alone on a line for any
lines; it may be a refusal, so the exit code does not count then. A block without one must succeed. A comment
`<!-- eventually 30s -->` before a block lets it be tried again until it does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.local.errors import LocalError
from deploy.local.process import base_env

_ROOT = Path(__file__).parents[2]
_BLOCK_SECONDS = 90.0
_FENCE = re.compile(r"^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_EVENTUALLY = re.compile(r"<!--\s*eventually\s+(\d+)s\s*-->\s*$")
_SOURCING = re.compile(r"^\s*(?:\.|source)\s+\.local/env\s*$")  # done already, from the file we were given


@dataclass(slots=True)
class Step:
    """One block.

    Attributes:
        commands: what to run.
        expected: what it must print; None for anything.
        within: seconds in which it may be tried again.
    """

    commands: str
    expected: str | None = None
    within: float = 0.0


def steps(readme: str, section: str = "Walk-through") -> list[Step]:
    """The steps of a README; raises LocalError when there are none."""
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    text = found[1] if found else ""
    result: list[Step] = []
    for fence in _FENCE.finditer(text):
        if fence["kind"] == "sh":
            patience = _EVENTUALLY.search(text[: fence.start()].rstrip() if fence.start() else "")
            commands = "\n".join(line for line in fence["body"].splitlines() if not _SOURCING.match(line))
            result.append(Step(commands, within=float(patience[1]) if patience else 0.0))
        elif fence["kind"] == "text" and result and result[-1].expected is None:
            result[-1].expected = fence["body"]
    if not result:
        raise LocalError(f"there is no section `## {section}` with ```sh blocks")
    return result


def matches(expected: str, printed: str) -> bool:
    """Whether an output is the expected one."""
    pattern = ""
    for line in expected.rstrip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(re.escape(piece) for piece in line.rstrip().split("…")) + "\n"
    text = "".join(line.rstrip() + "\n" for line in printed.rstrip().splitlines())
    return re.fullmatch(pattern, text) is not None


class _Shell:
    """One bash session."""

    def __init__(self, process: asyncio.subprocess.Process, scratch: Path) -> None:
        self._process = process
        self._scratch = scratch

    @classmethod
    async def open(cls, env_file: Path, cwd: Path, scratch: Path) -> _Shell:
        env = base_env() | {"PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'gen'}", "TERM": "dumb", "TMPDIR": str(scratch)}
        process = await asyncio.create_subprocess_exec(
            *("bash", "--noprofile", "--norc"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
            limit=1 << 24,
        )
        shell = cls(process, scratch)
        code, printed = await shell.run(f". {env_file}")
        if code:
            raise LocalError(f"{env_file}: {printed.strip()}")
        return shell

    async def run(self, commands: str) -> tuple[int, str]:
        """Exit code and output of a block; it runs in this very shell, so variables stay."""
        end = f"--{secrets.token_hex(8)}--"
        script = self._scratch / "block.sh"
        script.write_text(commands + "\n")
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f". {script} </dev/null; __code=$?; echo; echo {end} $__code\n".encode())
        lines: list[str] = []
        try:
            async with asyncio.timeout(_BLOCK_SECONDS):
                while line := (await self._process.stdout.readline()).decode(errors="replace"):
                    if line.startswith(end):
                        return int(line.split()[1]), "".join(lines)[:-1]
                    lines.append(line)
        except TimeoutError:
            raise LocalError(f"a block did not end within {_BLOCK_SECONDS:.0f} s; it printed:\n{''.join(lines)}") from None
        raise LocalError(f"the shell ended; it printed:\n{''.join(lines)}")

    async def close(self) -> None:
        """Ends the shell and all that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


async def walk(readme: Path, env_file: Path, say: Callable[[str], None], *, section: str = "Walk-through", cwd: Path = _ROOT) -> int:
    """Runs all steps of a section and returns their number; raises LocalError at the first that fails. `env_file` is absolute."""
    todo = steps(await asyncio.to_thread(readme.read_text), section)
    with tempfile.TemporaryDirectory(prefix="kubegems-walk-") as scratch:
        shell = await _Shell.open(env_file, cwd, Path(scratch))
        try:
            for number, step in enumerate(todo, 1):
                say(f"--- step {number} of {len(todo)}\n{step.commands.strip()}")
                say(await _step(shell, step, number))
        finally:
            await shell.close()
    return len(todo)


async def _step(shell: _Shell, step: Step, number: int) -> str:
    deadline = time.monotonic() + step.within * float(os.environ.get("KUBEGEMS_TEST_TIMESCALE", "1"))
    while True:
        code, printed = await shell.run(step.commands)
        if code == 0 if step.expected is None else matches(step.expected, printed):
            return printed
        if time.monotonic() > deadline:
            wanted = f"\nexpected:\n{step.expected}" if step.expected else ""
            raise LocalError(f"step {number} failed (exit code {code}):\n{step.commands.strip()}\nprinted:\n{printed}{wanted}")
        await asyncio.sleep(0.5)


def main() -> int:
    """Runs the walk-through; a failure is told and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.walkthrough", description="Runs the README's walk-through.")
    parser.add_argument("--env", type=Path, default=_ROOT / ".local/env", help="the running stack's env file")
    parser.add_argument("--readme", type=Path, default=_ROOT / "README.md")
    parser.add_argument("--section", default="Walk-through", help="heading of the section whose blocks are run")
    arguments = parser.parse_args()
    arguments.env = arguments.env.absolute()
    if not arguments.env.exists():
        sys.stderr.write(f"error: there is no {arguments.env}: is KubeGems running (make run)?\n")
        return 1
    try:
        count = asyncio.run(walk(arguments.readme, arguments.env, print, section=arguments.section))
    except LocalError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    print(f"all {count} steps of `{arguments.section}` did what {arguments.readme.name} says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
