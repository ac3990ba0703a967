"""`doctor`: what is wrong with the running platform: queues, stuck jobs, streams, grants in member clusters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg

from deploy.join.doctor import Doctor as Grants
from deploy.local import doctor_jobs, doctor_push
from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.kubectl import Kubectl
from deploy.local.layout import Layout
from libs import log
from libs.faults import Fault
from libs.pg import Database


def run(layout: Layout) -> int:
    """Prints what it finds; 0 when nothing is wrong, 1 otherwise."""
    if layout.running() is None or not layout.endpoints.exists():
        raise LocalError("KubeGems does not run (`make run` starts it)")
    log.setup("doctor", level="ERROR")  # what it finds is told by its lines
    return asyncio.run(_examine(layout, json.loads(layout.endpoints.read_text())))


async def _examine(layout: Layout, endpoints: Mapping[str, Any]) -> int:
    certificates = Certificates(layout.certificates)
    tls = (certificates.certificate("gateway"), certificates.key("gateway"), certificates.ca)
    said = ["jobs", *await _jobs(layout)]
    said += ["streams", *await doctor_push.lines(endpoints["nats"], tls, layout.secrets / "nats" / "gateway.nk")]
    print("\n".join(said))
    wrong = sum(line.startswith("!") for line in said) + await _show_grants(endpoints.get("clusters", {}))
    print("nothing is wrong" if not wrong else f"{wrong} things to look at")
    return 1 if wrong else 0


async def _jobs(layout: Layout) -> list[str]:
    try:
        database = await Database.connect((layout.secrets / "database.url").read_text().strip(), application_name="doctor")
        try:
            return await doctor_jobs.lines(database)
        finally:
            await database.close()
    except (OSError, asyncpg.PostgresError, Fault, TimeoutError) as error:
        return [f"! the database does not answer: {error!r}"]


async def _show_grants(clusters: Mapping[str, Mapping[str, str]]) -> int:
    """What each member cluster grants beyond the join manifest."""
    wrong = 0
    for name, facts in clusters.items():
        print(f"grants in {name}")
        try:
            wrong += (await Grants(Kubectl(Path(facts["kubeconfig"]))).examine()).show()
        except LocalError as error:
            print(f"!  {error}")
            wrong += 1
    return wrong
