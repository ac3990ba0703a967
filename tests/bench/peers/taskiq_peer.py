"""taskiq-nats as a peer, in a venv of its own: `enqueue N` or imported by `taskiq worker peers.taskiq_peer:broker`."""

import asyncio
import os
import sys
import time

from taskiq_nats import PullBasedJetStreamBroker

broker = PullBasedJetStreamBroker(servers=[os.environ["PEER_NATS"]], stream_name="peer", durable="peer", pull_consume_batch=100)
_SEEN = {"count": 0, "first": 0.0}
_WANTED = int(os.environ.get("PEER_JOBS", "0"))


@broker.task(task_name="noop")  # else it is named after the module, which is `__main__` where it is enqueued
async def noop(number: int) -> None:
    """Counts; the last one tells how long all took."""
    _SEEN["first"] = _SEEN["first"] or time.perf_counter()
    _SEEN["count"] += 1
    if _SEEN["count"] == _WANTED:
        print(f"SECONDS {time.perf_counter() - _SEEN['first']}", flush=True)


async def enqueue(count: int) -> None:
    """Sends so many, 100 at a time."""
    await broker.startup()
    for start in range(0, count, 100):
        await asyncio.gather(*(noop.kiq(number) for number in range(start, min(start + 100, count))))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(enqueue(int(sys.argv[1])))
