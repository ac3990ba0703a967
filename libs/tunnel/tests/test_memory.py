"""What a stream that nobody reads costs the processes on its way: measured by the kernel, not by our own counters."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import pytest

from libs.tunnel.limits import KIB
from libs.tunnel.tests.carriers import CARRIERS, credentials

STREAMS = 4  # that are stuck in one chain
BOUND = 1536  # KiB of each end and hop
READ = 16 * KIB  # KiB taken before the reader is stuck: the window has grown to its greatest
_LOOKS = 4  # alike, one after the other: a busy machine's pause is no rest
_SECONDS = 60 * float(os.environ.get("KUBEGEMS_TEST_TIMESCALE", "1"))


class Child:
    """One process of the chain."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> int:
        """What it says next."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_SECONDS):
            return int(await self._process.stdout.readline())

    async def ask(self, what: str) -> int:
        """Its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(what.encode() + b"\n")
        return await self.line()

    async def end(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def _started(stack: contextlib.AsyncExitStack, *arguments: object) -> tuple[Child, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.tunnel.tests.stuck_process", *map(str, arguments),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    child = Child(process)
    stack.push_async_callback(child.end)
    return child, await child.line()


async def _growth(carrier: str, folder: Path, window: int) -> list[int]:
    """KiB that one stuck stream costs maker, hop and asker.

    The baseline is the same chain after as many bytes that were all read and one stream that is stuck: it holds the
    connection's buffers and what the heap keeps. From there on each further stuck stream is charged to itself.
    """
    credentials(folder)
    async with contextlib.AsyncExitStack() as stack:
        maker, port = await _started(stack, "serve", carrier, folder, window, 0)
        hop, port = await _started(stack, "serve", carrier, folder, window, port)
        asker, _ = await _started(stack, "ask", carrier, folder, window, port)
        chain = (maker, hop, asker)
        await asker.ask(f"take {READ} {READ * 2}")
        await asker.ask(f"take {READ * 8} {READ}")
        before = await _at_rest(chain)
        for _ in range(STREAMS):
            await asker.ask(f"take {READ * 8} {READ}")
        return [(now - was) // STREAMS for now, was in zip(await _at_rest(chain), before, strict=True)]


async def _at_rest(chain: tuple[Child, ...]) -> list[int]:
    """Memory, once no more is made though more was asked for."""
    made: list[int] = []
    async with asyncio.timeout(_SECONDS):
        while len(made) < _LOOKS or len(set(made[-_LOOKS:])) > 1:
            made.append(await chain[0].ask("made"))
            await asyncio.sleep(0.2)
    return [await child.ask("memory") for child in chain]


@pytest.mark.parametrize("carrier", CARRIERS)
async def test_a_stuck_stream_costs_each_process_on_its_way_little(carrier: str, tmp_path: Path) -> None:
    """At most 1.5 MiB at either end and at the hop for each such stream, with its window grown to the greatest."""
    grown = await _growth(carrier, tmp_path, 256)
    assert max(grown) <= BOUND, f"KiB of maker, hop and asker: {grown}"


async def test_a_window_that_is_too_large_is_noticed(tmp_path: Path) -> None:
    """Positive control: with windows of 8 MiB the same measurement shows them."""
    grown = await _growth("tcp", tmp_path, 8 * KIB)
    assert min(grown[1:]) > 4 * BOUND, f"KiB of hop and asker: {grown}"
