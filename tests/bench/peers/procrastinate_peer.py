"""procrastinate as a peer, in a venv of its own: enqueues N jobs and works them off in one process; prints the seconds."""

import asyncio
import os
import sys
import time

from procrastinate import App, PsycopgConnector

app = App(connector=PsycopgConnector(conninfo=os.environ["PEER_POSTGRES"]))
_TIMES = {"first": 0.0, "last": 0.0}


@app.task
async def noop(number: int) -> None:
    """Notes when it ran."""
    _TIMES["first"] = _TIMES["first"] or time.perf_counter()
    _TIMES["last"] = time.perf_counter()


async def main(count: int) -> None:
    """All of it."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await noop.batch_defer_async(*({"number": number} for number in range(count)))
        await app.run_worker_async(concurrency=100, wait=False, install_signal_handlers=False)
    print(f"SECONDS {_TIMES['last'] - _TIMES['first']}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
