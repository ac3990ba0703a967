"""One process of a chain of tunnels, for measuring what a stuck stream costs it.

It serves tunnels; without a port it makes bytes without end, with one it passes streams on to the tunnel there; as `ask`
it opens streams and takes only what it is told to. A line on standard input is answered by one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from pathlib import Path

from libs.tunnel import Limits, Mux, Stream
from libs.tunnel.limits import KIB
from libs.tunnel.splice import splice
from libs.tunnel.tests.carriers import dialled, listening
from libs.tunnel.tests.pipe import refuse


class Process:
    """What the process is asked."""

    def __init__(self) -> None:
        self.made = 0
        self.far: Mux | None = None
        self.kept: list[Stream] = []

    async def serve(self, stream: Stream, header: bytes) -> None:
        """Passes on, or makes as many KiB as the header says."""
        if self.far is not None:
            await splice(stream, self.far.open(header))
            return
        piece = bytes(32 * KIB)
        for _ in range(int(header) // 32):
            await stream.write(piece)
            self.made += len(piece)
        stream.end()

    async def answer(self, line: str) -> int:
        """KiB of this process's memory, bytes made so far, or a stream of which so many KiB are taken: all of it, or stuck then."""
        what, *numbers = line.split()
        if what == "memory":
            gc.collect()
            rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
        if what == "made":
            return self.made
        assert self.far is not None
        stream = self.far.open(numbers[0].encode(), end=True)
        taken = 0
        while taken < int(numbers[1]) * KIB and (piece := await stream.read()):
            taken += len(piece)
        self.kept.append(stream)
        return taken


def _say(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def main(role: str, carrier: str, folder: Path, window: int, port: int) -> None:
    """Runs until standard input ends."""
    process, limits = Process(), Limits(window=window * KIB, window_max=max(window, 1024) * KIB)
    async with contextlib.AsyncExitStack() as stack:
        if port:
            process.far = await stack.enter_async_context(dialled(carrier, folder, port, refuse, limits))
        own = 0
        if role == "serve":
            own = await stack.enter_async_context(listening(carrier, folder, process.serve, limits))
        _say(own)
        while line := await asyncio.to_thread(sys.stdin.readline):
            _say(await process.answer(line))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])))
