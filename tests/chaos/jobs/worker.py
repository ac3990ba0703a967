"""A worker process of the chaos test: the engine as services/worker runs it, with short leases and the test's kinds.

`python -m tests.chaos.jobs.worker <settings.json> <name>`; SIGTERM drains it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import uvloop

from libs import jobs, log
from libs.bus import Bus
from libs.bus.relay import Relay
from libs.faults import Unavailable
from libs.jobs.clockwork import Clockwork
from libs.jobs.dispatch import Dispatcher
from libs.jobs.runner import Runner
from libs.pg import Database
from tests.chaos.jobs.kinds import SCHEDULE, known

LEASE = timedelta(seconds=3)
CHECK_SECONDS = 1.5


async def allowed(port: int, username: str, _permission: str, _scope: str) -> bool:
    """Asks the gateway's stand-in; Unavailable while it is dead."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(username.encode() + b"\n")
            answer = await reader.readline()
            writer.close()
    except (OSError, TimeoutError) as error:
        raise Unavailable("the gateway is away") from error
    if not answer:
        raise Unavailable("the gateway died while it answered")
    return answer == b"yes\n"


async def main(settings: dict[str, Any], name: str) -> None:
    """Works until it is told to stop."""
    database = await Database.connect(settings["dsn"], application_name=name, patience=60)
    files = tuple(Path(path) for path in settings["tls"])
    bus = await Bus.connect(settings["nats"], name="worker", tls=files, nkey_seed_file=Path(settings["seed"]))  # type: ignore[arg-type] # three files
    dispatcher = Dispatcher(database, bus, known(), window=40, check_seconds=CHECK_SECONDS, lease=LEASE, bundle=3)

    async def may(username: str, permission: str, scope: str) -> bool:
        return await allowed(settings["gateway"], username, permission, scope)

    runner = Runner(database, known(), allowed=may, worker=name, concurrency=12, lease=LEASE, heartbeat=0.5, on_claimed=dispatcher.claimed)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await database.listen(jobs.WAKE, dispatcher.wake)
    await database.listen(jobs.CANCEL, runner.cancelled)
    work = (dispatcher.run(), runner.run(bus), Relay(database, bus, [jobs.SCHEMA]).run(), Clockwork(database, known(), [SCHEDULE]).run())
    tasks = [asyncio.create_task(task, name=f"worker {number}") for number, task in enumerate(work)]
    stop = asyncio.create_task(stopping.wait(), name="stop")
    done, _ = await asyncio.wait({stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {stop}:
        task.result()
    await runner.drain()
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
    await bus.close()
    await database.close()


if __name__ == "__main__":
    log.setup("worker", level="INFO")
    uvloop.run(main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]))
