"""What the doctor says of queues and jobs: nothing of a sound platform, each thing that is wrong of another."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from deploy.local import doctor_jobs
from libs import jobs
from libs.jobs import queues
from libs.pg import Database
from tests.kit.data import FreshDatabase


@pytest.fixture(scope="module")
async def opened(database: FreshDatabase) -> AsyncIterator[Database]:
    connected = await Database.connect(database.dsn, application_name="doctor test")
    await jobs.prepare(connected)
    yield connected
    await connected.close()


async def _plant(database: Database, change: str = "", **more: Any) -> jobs.Job:
    order = jobs.Order(**({"kind": "count", "target": "clusters/a", "creator": "users/dev"} | more))
    async with database.transaction() as tx:
        job = (await jobs.enqueue(tx, order)).job
        if change:
            await tx.execute(f"UPDATE jobs.jobs SET {change} WHERE id = $1", job.id)
    return job


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("state = 'RUNNING', lease_time = now() - interval '1 minute'", "its worker is gone and nobody takes it back"),
        ("state = 'RUNNING', lease_time = now() + interval '1 minute', cancel = true", "was asked to stop and does not"),
        ("state = 'DEAD', error = 'no route'", "failed too often: no route"),
        ("waits = 'KIND'", "no worker knows its kind"),
        ("waits = 'KEY', concurrency_key = 'k', ready_time = now() - interval '5 minutes'", "waits for its concurrency key: k"),
        ("dispatch_time = now(), ready_time = now() - interval '5 minutes'", "its message was sent long ago"),
        ("ready_time = now() - interval '5 minutes'", "is ready for long: is a worker up?"),
    ],
)
async def test_a_job_that_does_not_move_is_told_with_its_reason(opened: Database, change: str, why: str) -> None:
    """Planted, it is one line with a mark; gone, nothing is wrong any more."""
    job = await _plant(opened, change)
    [told] = [line for line in await doctor_jobs.lines(opened) if line.startswith("!")]
    assert told.startswith(f"! jobs/{job.id} count clusters/a ")
    assert why in told
    async with opened.transaction() as tx:
        await tx.execute("DELETE FROM jobs.jobs WHERE id = $1", job.id)
    assert not [line for line in await doctor_jobs.lines(opened) if line.startswith("!")]


async def test_a_sound_platform_has_figures_and_no_marks(opened: Database) -> None:
    """Work that waits for its time, runs, or has just come is no fault."""
    planted = [
        await _plant(opened), await _plant(opened, "state = 'RUNNING', lease_time = now() + interval '9 seconds'"),
        await _plant(opened, "waits = 'TIME', run_time = now() + interval '1 day', ready_time = now() - interval '1 day'"),
        await _plant(opened, "waits = 'KEY', concurrency_key = 'k'"), await _plant(opened, "state = 'SUCCEEDED'"),
    ]  # fmt: skip
    said = await doctor_jobs.lines(opened)
    assert not [line for line in said if line.startswith("!")]
    assert [re.split(r"\s+", line.strip()) for line in said[1:]] == [["default", "1", "2", "0", "1", "0", "0s"]]
    async with opened.transaction() as tx:
        await tx.execute("DELETE FROM jobs.jobs WHERE id = ANY($1)", [job.id for job in planted])


async def test_a_paused_queue_and_what_waits_in_it_are_told(opened: Database) -> None:
    """With who paused it."""
    job = await _plant(opened, "ready_time = now() - interval '5 minutes'")
    async with opened.transaction() as tx:
        await queues.pause(tx, "default", "users/root")
    told = [line for line in await doctor_jobs.lines(opened) if line.startswith("!")]
    assert len(told) == 2
    assert "PAUSED by users/root" in told[0]
    assert told[1] == f"! jobs/{job.id} count clusters/a QUEUED: its queue is paused"
    async with opened.transaction() as tx:
        await queues.resume(tx, "default")
        await tx.execute("DELETE FROM jobs.jobs")


async def test_many_dead_jobs_hide_no_other(opened: Database) -> None:
    """A job that hangs is told however many have died."""
    for _ in range(doctor_jobs._MOST):
        await _plant(opened, "state = 'DEAD'")
    job = await _plant(opened, "state = 'RUNNING', lease_time = now() - interval '1 minute'")
    told = [line for line in await doctor_jobs.lines(opened) if line.startswith("!")]
    assert told[0].startswith(f"! jobs/{job.id} ")
    async with opened.transaction() as tx:
        await tx.execute("DELETE FROM jobs.jobs")
