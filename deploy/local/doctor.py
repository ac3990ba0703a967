"""`doctor`: what is wrong with the running platform: queues, stuck jobs, streams, grants in member clusters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from deploy.join.doctor import Doctor as Grants
from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.kubectl import Kubectl
from deploy.local.layout import Layout
from deploy.local.options import Options
from deploy.local.ports import DEFAULTS
from libs.bus import Bus, streams
from libs.faults import Fault
from libs.jobs import queues
from libs.pg import Database

_SECONDS = 10.0
_STUCK = """
SELECT id, kind, target, state, attempts, waits, CASE
         WHEN state = 'RUNNING' AND lease_time < jobs.clock() THEN 'its worker is gone and nobody takes it back: is a worker up?'
         WHEN state = 'RUNNING' AND cancel THEN 'was asked to stop and does not'
         WHEN waits = 'KIND' THEN 'no worker knows its kind'
         WHEN waits = 'KEY' THEN 'waits for its concurrency key: ' || coalesce(concurrency_key, '')
         WHEN state = 'DEAD' THEN 'failed too often: ' || left(error, 100)
         WHEN dispatch_time IS NOT NULL THEN 'its message was sent long ago: are workers busy?'
         ELSE 'is ready for long: are workers up, is its queue paused?' END AS why
  FROM jobs.jobs
 WHERE (state = 'RUNNING' AND (lease_time < jobs.clock() OR cancel)) OR waits = 'KIND' OR state = 'DEAD'
    OR (state = 'QUEUED' AND waits <> 'TIME' AND ready_time < jobs.clock() - interval '2 minutes')
 ORDER BY state, id LIMIT 20
"""


def run(layout: Layout) -> int:
    """Prints what it finds; 0 when nothing is wrong, 1 otherwise."""
    if layout.running() is None or not layout.endpoints.exists():
        raise LocalError("KubeGems does not run (`make run` starts it)")
    try:
        return asyncio.run(_examine(layout))
    except (OSError, asyncpg.PostgresError, Fault, TimeoutError) as error:
        raise LocalError(f"the database does not answer: {error!r}") from error


async def _examine(layout: Layout) -> int:
    database = await Database.connect((layout.secrets / "database.url").read_text().strip(), application_name="doctor")
    try:
        async with asyncio.timeout(_SECONDS), database.transaction(readonly=True) as tx:
            figures = await queues.figures(tx)
            stuck = [dict(row.items()) for row in await tx.rows(_STUCK)]
    finally:
        await database.close()
    wrong = _show_queues(figures) + _show_stuck(stuck) + await _show_streams(layout) + await _show_grants(layout)
    print("nothing is wrong" if not wrong else f"{wrong} things to look at")
    return 1 if wrong else 0


def _show_queues(figures: list[queues.Queue]) -> int:
    print("queues           ready  waiting  sent  running  dead  oldest")
    for found in figures:
        paused = f"  PAUSED by {found.pauser}" if found.paused else ""
        print(
            f"  {found.name:<14} {found.ready:>5}  {found.waiting:>7}  {found.dispatched:>4}  {found.running:>7}  {found.dead:>4}"
            f"  {found.oldest_seconds:>5.0f}s{paused}"
        )
    return sum(found.paused for found in figures)


def _show_stuck(stuck: Sequence[Mapping[str, Any]]) -> int:
    print(f"stuck jobs       {len(stuck)}")
    for job in stuck:
        print(f"  jobs/{job['id']} {job['kind']} {job['target']} {job['state']}: {job['why']}")
    return len(stuck)


async def _show_grants(layout: Layout) -> int:
    """What each member cluster grants beyond the join manifest."""
    wrong = 0
    for name, facts in json.loads(layout.endpoints.read_text()).get("clusters", {}).items():
        print(f"grants in {name}")
        wrong += (await Grants(Kubectl(Path(facts["kubeconfig"]))).examine()).show()
    return wrong


async def _show_streams(layout: Layout) -> int:
    url = Options.read().nats_url or f"tls://127.0.0.1:{json.loads(layout.ports.read_text()).get('nats', DEFAULTS['nats'])}"
    certificates = Certificates(layout.certificates)
    tls = (certificates.certificate("gateway"), certificates.key("gateway"), certificates.ca)
    bus = await Bus.connect(url, name="doctor", tls=tls, nkey_seed_file=layout.secrets / "nats" / "gateway.nk")
    try:
        known = await bus.streams()
    except Fault as fault:
        print(f"streams          {fault}")
        return 1
    finally:
        await bus.close()
    missing = [stream.name for stream in streams.HUB if stream.name not in known]
    print(f"streams          {', '.join(known)}" + (f"; MISSING {', '.join(missing)}" if missing else ""))
    return len(missing)
