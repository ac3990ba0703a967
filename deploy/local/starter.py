"""`run`, `stop` and `clean`: what happens around a stack in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

from deploy.local.errors import LocalError
from deploy.local.layout import Layout
from deploy.local.options import Options
from deploy.local.stack import Stack

_STOP_SECONDS = 90.0


async def run(layout: Layout) -> None:
    """Runs the platform until a signal or a failure; raises LocalError for the latter."""
    options = Options.read()
    layout.create()
    layout.lock()
    layout.withdraw()  # of a starter that was killed
    say = _Teller()
    stack = Stack(layout, options, say)
    stopping = _signals(stack)
    work = {asyncio.create_task(step, name=name) for name, step in (("start", _start(stack, say)), ("failure", _fail(stack)))}
    stop = asyncio.create_task(stopping.wait(), name="stop signal")
    try:
        await _until_over(work, stop)
    finally:
        say("stopping")
        for task in (*work, stop):
            task.cancel()
        await asyncio.gather(*work, stop, return_exceptions=True)
        await stack.stop()
        layout.unlock()
    say("stopped")


async def _until_over(work: set[asyncio.Task[None]], stop: asyncio.Task[bool]) -> None:
    """Waits for the stop signal; raises what a task failed with before."""
    pending: set[asyncio.Task[None]] = work
    while pending and not stop.done():
        done, _ = await asyncio.wait({*pending, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in done & pending:
            task.result()
        pending = pending - done


async def _start(stack: Stack, say: _Teller) -> None:
    await stack.start()
    facts = [
        f"REST  {stack.hub.rest}   (CA: {stack.hub.certificates.ca})",
        f"gRPC  {stack.hub.grpc}",
        f"admin password in {stack.layout.admin_password}",
    ]
    if stack.hub.new_password:
        facts[-1] += f": {stack.layout.admin_password.read_text().strip()}"
    say("the hub is ready\n" + "\n".join(f"    {line}" for line in facts))
    await stack.joined.wait()
    for member in stack.members:
        lines = [f"its own admin      {member.kubeconfig}", f"through the hub    {member.site.hub_kubeconfig}"]
        say(f"the cluster `{member.name}` has joined; kubeconfigs:\n" + "\n".join(f"    {line}" for line in lines))
    say("KubeGems runs. `. .local/env` sets variables for your shell; Ctrl-C or `make stop` ends all.")


async def _fail(stack: Stack) -> None:
    raise await stack.failure()


def _signals(stack: Stack) -> asyncio.Event:
    """An event that the first signal sets; the second one ends all at once."""
    stopping = asyncio.Event()

    def received() -> None:
        if stopping.is_set():
            stack.supervisor.kill()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, received)
    return stopping


def stop(layout: Layout) -> None:
    """Ends the running stack and waits until nothing of it is left."""
    pid = layout.running()
    if pid is None:
        layout.withdraw()
        _Teller()("KubeGems does not run")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while layout.running() is not None:
        if time.monotonic() > deadline:
            raise LocalError(
                f"the starter (pid {pid}) did not end within {_STOP_SECONDS:.0f} s; end it with kill -9, its children end with it"
            )
        time.sleep(0.1)
    _Teller()("stopped")


def clean(layout: Layout) -> None:
    """Removes the stack's data."""
    pid = layout.running()
    if pid is not None:
        raise LocalError(f"KubeGems runs (pid {pid}): `make stop` first")
    layout.remove()
    _Teller()(f"removed {layout.root}")


class _Teller:
    """Prints one line with the seconds since the start."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._since:5.1f}s] {line}", flush=True)
