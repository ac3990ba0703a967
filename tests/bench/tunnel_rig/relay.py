"""A slow link in user space, a process of its own: `relay.py TARGET_PORT` tells its port; 20 ms each way, 25 MB/s, a queue of 30 ms."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque

import uvloop

DELAY, RATE, QUEUE = 0.020, 25e6, 0.030  # seconds each way, bytes a second each way, seconds of bytes that may wait
_READ, _KERNEL = 16 * 1024, 64 * 1024


class Way:
    """One direction: bytes leave at the link's rate and arrive after its delay."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._more, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._free = 0.0

    async def run(self) -> None:
        """Until one side ends."""
        out = asyncio.create_task(self._out(), name="out")
        try:
            while content := await self._reader.read(_READ):
                now = self._loop.time()
                self._free = max(self._free, now) + len(content) / RATE
                self._waiting.append((self._free + DELAY, content))
                self._more.set()
                if self._free - now > QUEUE:
                    await asyncio.sleep(self._free - now - QUEUE)
        finally:
            out.cancel()
            self._writer.close()

    async def _out(self) -> None:
        while True:
            while not self._waiting:
                self._more.clear()
                await self._more.wait()
            due, content = self._waiting.popleft()
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            self._writer.write(content)
            await self._writer.drain()


async def main(target: int) -> None:
    """Serves until it is killed."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target, limit=_READ)
        for end in (writer, far_writer):
            sock = end.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL)
        ways = (Way(reader, far_writer).run(), Way(far_reader, writer).run())
        await asyncio.gather(*ways, return_exceptions=True)

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL)  # or the kernel would be a second queue
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(relay, sock=listener, limit=_READ)
    sys.stdout.write(f"= [{server.sockets[0].getsockname()[1]}]\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
