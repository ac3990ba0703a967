"""The gateway's stand-in: says at every claim that the owner still may, except for `mallory`. It is killed like the others."""

from __future__ import annotations

import asyncio
import sys


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    name = (await reader.readline()).strip()
    writer.write(b"no\n" if name == b"mallory" else b"yes\n")
    writer.close()


async def main(port: int) -> None:
    """Answers until it is killed."""
    server = await asyncio.start_server(_answer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
