"""arq, tuned (100 at a time, 10 ms poll), as a peer in a venv of its own: enqueues N and works them off; prints the seconds."""

import asyncio
import os
import sys
import time

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

_TIMES = {"first": 0.0, "last": 0.0}


async def noop(_context: dict, _number: int) -> None:
    """Notes when it ran."""
    _TIMES["first"] = _TIMES["first"] or time.perf_counter()
    _TIMES["last"] = time.perf_counter()


async def main(count: int) -> None:
    """All of it."""
    settings = RedisSettings(port=int(os.environ["PEER_REDIS"]))
    pool = await create_pool(settings)
    for number in range(count):
        await pool.enqueue_job("noop", number)
    worker = Worker(functions=[noop], redis_settings=settings, burst=True, max_jobs=100, poll_delay=0.01, handle_signals=False)
    await worker.main()
    print(f"SECONDS {_TIMES['last'] - _TIMES['first']}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
