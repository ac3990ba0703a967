"""What the doctor says of push, and what is measured: of a sound platform, and of one that is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from deploy.local import doctor_push
from kubegems.messages.v1 import events_pb2
from libs.bus import streams, subjects
from libs.clock import new_id
from services.msgbus.post import DURABLE
from tests.integration.push.cluster import UID
from tests.integration.push.rig import Rig

OTHER = "0197a1b2-0000-7000-8000-000000000002"
ALERTS = Path(__file__).parents[3] / "deploy/alerts/push.yaml"


async def said(rig: Rig) -> list[str]:
    """All lines."""
    return await doctor_push.lines(rig.nats.url, rig.nats.tls(), rig.nats.seed_file())


async def test_streams_consumers_and_lag_are_shown(rig: Rig, eventually: Any) -> None:
    """Each stream has a line, lasting consumers theirs; the only thing that is wrong here is that there is no worker."""

    async def followed() -> list[str]:
        lines = await said(rig)
        assert re.search(rf"CLUSTER_{UID}: \d+ messages, \d+% full, 2 readers, the last \d+ behind", "\n".join(lines)), lines
        return lines

    lines = await eventually(followed, within=10, what="both replicas follow")
    text = "\n".join(lines)
    assert all(f" {name}: " in text for name in ("PLATFORM", "NOTICES", "JOBS", f"CLUSTER_{UID}")), text
    assert "msgbus-post: 0 waiting" in text
    assert [line for line in lines if line.startswith("!")] == ["!   consumer workers of JOBS is missing: is the worker running?"]


async def test_what_is_measured_is_there_to_be_asked(rig: Rig) -> None:
    """A running replica shows every metric that an alert names: lag, waiting events, drops, revocations, subscribers among them."""
    address = rig.parts[0].command().env["KUBEGEMS_MSGBUS_METRICS_ADDRESS"]
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as reply:
        shown = set(re.findall(r"^# TYPE (\w+) ", await reply.text(), re.MULTILINE))
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["spec"]["groups"] for rule in group["rules"]]
    asked = {re.sub("_bucket$", "", name) for rule in rules for name in re.findall(r"\bkubegems_msgbus_\w+", rule["expr"])}
    wanted = {"lag_seconds", "queue_events", "dropped_total", "revocation_seconds", "subscribers"}
    assert asked | {f"kubegems_msgbus_{name}" for name in wanted} <= shown


async def test_a_lagging_consumer_and_a_missing_one_are_told(rig: Rig, eventually: Any) -> None:
    """With msgbus dead its messages wait: more than a thousand are told, and so are streams that nobody reads and what is not there."""
    for index in range(2):
        await rig.kill_replica(index)
    notice = events_pb2.NoticePosted(audiences=["users/nobody"], title="waits")
    for _ in range(1001):
        await rig.bus.publish(subjects.notice("posted"), notice, id=str(new_id()))
    lines = await said(rig)
    assert [line for line in lines if line.startswith(f"!   {DURABLE}: 1001 waiting")], lines
    await rig.bus.ensure_stream(streams.cluster(OTHER))
    assert f"!   nobody reads CLUSTER_{OTHER}: is msgbus running?" in await said(rig)
    await rig.bus.delete_stream("JOBS")
    assert "! stream JOBS is missing; the gateway makes it within half a minute" in await said(rig)
    await rig.bus.delete_stream("NOTICES")
    for stream in streams.HUB:
        await rig.bus.ensure_stream(stream)
    assert f"!   consumer {DURABLE} of NOTICES is missing: is the msgbus running?" in await said(rig)
    for index in range(2):
        await rig.start_replica(index)
    await eventually(lambda: _says(rig, f"    {DURABLE}: 0 waiting, 0 in hand, 0 came again"), within=20, what="all well")


async def _says(rig: Rig, line: str) -> bool:
    return line in await said(rig)


async def test_a_broker_that_is_away_is_one_line(rig: Rig) -> None:
    """And no trace."""
    [line] = await doctor_push.lines("tls://127.0.0.1:1", rig.nats.tls(), rig.nats.seed_file())
    assert line.startswith("! NATS does not answer")
