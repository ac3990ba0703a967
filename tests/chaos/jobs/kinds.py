"""The kinds of job of the chaos test; each leaves traces in schema `chaos` that its oracle reads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from libs.jobs import Context, GiveUp, Kind, Retry, Step, kinds
from libs.jobs.kind import backoff
from libs.jobs.schedule import Schedule

SCHEMA = """
CREATE SCHEMA IF NOT EXISTS chaos;
CREATE TABLE IF NOT EXISTS chaos.effects (job uuid NOT NULL, step text NOT NULL DEFAULT '', fence bigint NOT NULL);
CREATE TABLE IF NOT EXISTS chaos.holders (key text NOT NULL, job uuid NOT NULL, fence bigint NOT NULL);
"""
_EFFECT = "INSERT INTO chaos.effects (job, step, fence) VALUES ($1, $2, $3)"


def _leave(context: Context, step: str = "") -> None:
    async def effect(tx: Any) -> None:
        await tx.execute(_EFFECT, context.job.id, step, context.job.fence)

    context.effect(effect)


async def quick(context: Context, _payload: Any) -> None:
    """One effect, at once."""
    context.progress(50, "half")
    _leave(context)


async def slow(context: Context, _payload: Any) -> None:
    """One effect after a while, with progress and log."""
    context.progress(20, "working")
    context.log("began")
    await asyncio.sleep(random.uniform(1.0, 3.0))  # one wait: a worker that was frozen meanwhile wakes up right before the effect
    context.progress(80, "nearly done")
    _leave(context)


async def flaky(context: Context, _payload: Any) -> None:
    """Fails now and then, after it has prepared its effect."""
    _leave(context)
    if random.random() < 0.4:
        raise Retry("bad luck", after=timedelta(seconds=random.uniform(0.05, 0.5)))
    if random.random() < 0.2:
        raise RuntimeError("a mistake")


async def doomed(context: Context, _payload: Any) -> None:
    """Gives up; its effect must not be."""
    _leave(context)
    raise GiveUp("no use")


async def poison(context: Context, _payload: Any) -> None:
    """Never works."""
    _leave(context)
    raise Retry("never works", after=timedelta(seconds=0.1))


async def keyed(context: Context, _payload: Any) -> None:
    """Alone with its key: in a transaction of the job it looks whether anybody else is at it."""
    async with context.transaction() as tx:
        others = await tx.value(
            "SELECT count(*) FROM jobs.jobs WHERE concurrency_key = $1 AND state = 'RUNNING' AND id <> $2",
            context.job.concurrency_key, context.job.id,
        )  # fmt: skip
        if others:
            await tx.execute(
                "INSERT INTO chaos.holders VALUES ($1, $2, $3)", context.job.concurrency_key, context.job.id, context.job.fence
            )
    await asyncio.sleep(random.uniform(0.05, 0.5))
    _leave(context)


def _step(name: str) -> Step:
    async def step(context: Context, _payload: Any) -> None:
        await asyncio.sleep(random.uniform(0, 0.5))
        if random.random() < 0.15:
            raise Retry("bad luck", after=timedelta(seconds=0.1))
        _leave(context, name)

    return Step(name, step)


STEPS = ("one", "two", "three")
HANDLERS = {"quick": quick, "slow": slow, "flaky": flaky, "doomed": doomed, "poison": poison, "keyed": keyed}
POISON_ATTEMPTS = 3
_SECOND = timedelta(seconds=1)  # with the engine's own back-off one unlucky job would keep all waiting for minutes
PATIENT = 200  # each death of a worker is an attempt; these must survive many


async def targets() -> Sequence[str]:
    """Where the schedule starts its jobs."""
    return ["tenants/a", "tenants/b"]


SCHEDULE = Schedule(name="tick", kind="tick", interval=timedelta(seconds=2), targets=targets)


def known() -> dict[str, Kind]:
    """All of them."""

    def soon(attempt: int) -> timedelta:
        return backoff(attempt, first=_SECOND / 5, longest=_SECOND)

    every: dict[str, Any] = {
        "targets": "tenants", "depth": 2, "permission": "jobs.jobs.create", "timeout": timedelta(seconds=20), "retry_after": soon,
        "max_attempts": PATIENT,
    }  # fmt: skip
    return kinds(
        *(Kind(name, handler=handler, **every) for name, handler in HANDLERS.items()),
        Kind("tick", handler=quick, **every | {"permission": ""}),
        Kind("steps", steps=tuple(_step(name) for name in STEPS), **every),
    )
