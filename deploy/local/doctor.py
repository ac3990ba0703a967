"""`doctor`: what is wrong with the running platform: queues, stuck jobs, streams, grants in member clusters."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import asyncpg

from deploy.join.doctor import Doctor as Grants
from deploy.local import doctor_jobs, doctor_push
from deploy.local.certificates import Certificates
from deploy.local.errors import LocalError
from deploy.local.kubectl import Kubectl
from deploy.local.layout import Layout
from deploy.local.options import Options
from deploy.local.ports import DEFAULTS
from libs.faults import Fault
from libs.pg import Database


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
        said = ["jobs", *await doctor_jobs.lines(database)]
    finally:
        await database.close()
    url = Options.read().nats_url or f"tls://127.0.0.1:{json.loads(layout.ports.read_text()).get('nats', DEFAULTS['nats'])}"
    certificates = Certificates(layout.certificates)
    tls = (certificates.certificate("gateway"), certificates.key("gateway"), certificates.ca)
    said += ["streams", *await doctor_push.lines(url, tls, layout.secrets / "nats" / "gateway.nk")]
    print("\n".join(said))
    wrong = sum(line.startswith("!") for line in said) + await _show_grants(layout)
    print("nothing is wrong" if not wrong else f"{wrong} things to look at")
    return 1 if wrong else 0


async def _show_grants(layout: Layout) -> int:
    """What each member cluster grants beyond the join manifest."""
    wrong = 0
    for name, facts in json.loads(layout.endpoints.read_text()).get("clusters", {}).items():
        print(f"grants in {name}")
        wrong += (await Grants(Kubectl(Path(facts["kubeconfig"]))).examine()).show()
    return wrong
