"""Jobs on the whole platform: schedules, queues, replay and purge through the gateway, the platform's own jobs, doctor."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.ports import DEFAULTS
from libs import jobs
from libs.pg import Database
from tests.e2e.world import DEV, World
from tests.kit import alerts
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


async def test_doctor_shows_queues_streams_and_a_stuck_job(platform: World, stack: Platform) -> None:
    """`make doctor` on a sound platform says so; a job whose kind no worker knows is told with that reason, until it is cancelled."""
    await platform.admin.post("/jobs:purge", {"filter": 'state = "DEAD"'})
    code, said = await _doctor(stack)
    assert (code, "nothing is wrong" in said) == (0, True), said
    assert all(word in said for word in ("queue", "maintenance", "JOBS", "NOTICES")), said
    database = await Database.connect((stack.layout.secrets / "database.url").read_text().strip(), application_name="test")
    try:
        async with database.transaction() as tx:
            planted = (await jobs.enqueue(tx, jobs.Order(kind="of-another-release", target=DEV, creator="users/dev"))).job

        async def told() -> None:
            code, said = await _doctor(stack)
            assert code == 1
            assert f"! {planted.name} of-another-release {DEV} QUEUED: no worker knows its kind" in said, said

        await eventually(told, within=30, every=0.5)
    finally:
        await database.close()
    await platform.admin.post(f"/{planted.name}:cancel", {})
    assert (await _doctor(stack))[0] == 0


async def _doctor(stack: Platform) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.local", "doctor", "--state", str(stack.layout.root), cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, output.decode()


async def test_each_alert_finds_its_figures_in_the_running_worker(platform: World, stack: Platform) -> None:
    """Every metric and label that a shipped rule reads is there in what the worker exposes, once its jobs have run."""
    [job] = (await platform.admin.post("/schedules/certificate-expiry:run", {}))["jobs"]
    assert (await _ended(platform.admin, job))["state"] == "SUCCEEDED"
    port = json.loads(stack.layout.ports.read_text()).get("worker-metrics", DEFAULTS["worker-metrics"])

    async def exposed() -> None:
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as reply:
            text = await reply.text()
        found = {sample.name: set(sample.labels) for family in text_string_to_metric_families(text) for sample in family.samples}
        for rule in alerts.rules():
            for metric, labels in alerts.selectors(rule["expr"]).items():
                assert metric in found, f"{rule['alert']}: {metric} is not exposed"
                assert labels <= found[metric], f"{rule['alert']}: {metric} has no {labels - found[metric]}"

    await eventually(exposed, within=90, every=1.0)
