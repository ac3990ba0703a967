"""Jobs on the whole platform: schedules, queues, replay and purge through the gateway, the platform's own jobs, doctor."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.world import DEV, World
from tests.kit.eventually import eventually
from tests.kit.platform import Platform

pytestmark = [pytest.mark.e2e, pytest.mark.cluster, pytest.mark.timeout(200)]
_ROOT = Path(__file__).parents[2]


async def _ended(user: Any, name: str) -> Any:
    async def done() -> Any:
        job = await user.get(f"/{name}")
        assert job["state"] not in ("QUEUED", "RUNNING"), job
        return job

    return await eventually(done, within=60, every=0.3)


async def test_a_job_waits_in_a_paused_queue_is_replayed_and_purged(platform: World) -> None:
    """Only the platform admin pauses; the user replays and a tenant's admin purges."""
    assert (await platform.dev.call("POST", "/queues/default:pause", {})).status in (403, 404)
    paused = await platform.admin.post("/queues/default:pause", {})
    assert paused["paused"] is True
    job = await platform.dev.post("/jobs", {"job": {"kind": "environment-usage-report", "target": DEV, "priority": 3}})
    shown = await platform.dev.get(f"/{job['name']}")
    assert (shown["state"], shown["waitingFor"]) == ("QUEUED", "QUEUE")
    await platform.admin.post("/queues/default:resume", {})
    assert (await _ended(platform.dev, job["name"]))["state"] == "SUCCEEDED"
    replayed = await platform.dev.post(f"/{job['name']}:replay", {})
    assert replayed["replayOf"] == job["name"]
    assert (await _ended(platform.dev, replayed["name"]))["state"] == "SUCCEEDED"
    purged = await platform.admin.post("/jobs:purge", {"filter": f'target = "{DEV}" AND kind = "environment-usage-report"'})
    assert purged["purged"] >= 2
    assert (await platform.dev.call("GET", f"/{job['name']}")).status == 404


@pytest.mark.parametrize("name", ["environment-usage", "usage-archive", "quota-statistics", "certificate-expiry", "retention"])
async def test_the_platforms_own_jobs_run(platform: World, name: str) -> None:
    """Each schedule run by hand ends well and is in the history."""
    jobs = (await platform.admin.post(f"/schedules/{name}:run", {}))["jobs"]
    for job in jobs:
        ended = await _ended(platform.admin, job)
        assert ended["state"] == "SUCCEEDED", ended
    runs = (await platform.admin.get(f"/schedules/{name}/runs"))["runs"]
    assert any(run["outcome"] == "MANUAL" for run in runs)


async def test_desired_state_is_as_its_rows_say(platform: World) -> None:
    """Reconciliation of a tenant finds nothing to put right."""
    job, *_ = (await platform.admin.post("/schedules/tenancy-reconciliation:run", {}))["jobs"]
    ended = await _ended(platform.admin, job)
    assert ended["state"] == "SUCCEEDED", ended
    assert ended["result"]["repaired"] == []
    assert ended["result"]["compared"] >= 4


async def test_an_admin_makes_a_schedule_whose_jobs_have_his_rights(platform: World) -> None:
    """Cron with a time zone, run now, disable, delete."""
    body = {"kind": "environment-usage-report", "target": DEV, "cron": "30 2 * * mon-fri", "timeZone": "Europe/Berlin"}
    made = await platform.admin.post("/schedules", {"scheduleId": "nightly", "schedule": body})
    assert made["owner"] == "users/admin"
    assert not made.get("builtIn")
    [job] = (await platform.admin.post("/schedules/nightly:run", {}))["jobs"]
    assert (await _ended(platform.admin, job))["owner"] == "users/admin"
    bad = await platform.admin.call("POST", "/schedules", {"scheduleId": "bad", "schedule": body | {"cron": "61 * * * *"}})
    assert (bad.status, list(bad.fields)) == (400, ["schedule.cron"])
    assert (await platform.admin.call("DELETE", "/schedules/inventory")).status == 400
    await platform.admin.call("DELETE", "/schedules/nightly")
    assert (await platform.admin.call("GET", "/schedules/nightly")).status == 404


async def test_doctor_shows_queues_and_streams(platform: World, stack: Platform) -> None:
    """`make doctor` on a sound platform."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.local", "doctor", "--state", str(stack.layout.root), cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"queues" in output, output
    assert b"JOBS" in output, output
    assert b"MISSING" not in output, output
