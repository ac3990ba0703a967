"""A hub of another version: what this agent does not know is passed over or refused, and the tunnel stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from kubegems.agent.v1 import tunnel_pb2
from libs.kube import KubeClient
from libs.tunnel import Reset, Stream
from libs.tunnel.errors import Ended
from libs.tunnel.tests.pipe import pair, refuse
from services.agent.desk import Desk
from services.agent.tests.test_desired import Hub, follower, hub, names

__all__ = ["hub"]

NEWER = b"\xba\x3e\x05newer"  # field 999, a text


async def test_a_stream_for_a_purpose_of_a_newer_hub_is_refused_and_the_tunnel_stays() -> None:
    """The status says so; the next stream, for a purpose that is known and with a field that is not, is served."""
    asked = list[str]()
    desks = list[Desk]()

    async def serve(stream: Stream, header: bytes) -> None:
        await desks[0].serve(stream, header)

    theirs, ours = pair(refuse, serve)
    unused = cast("Any", None)
    desks.append(Desk(ours, unused, pipeline=unused, proxy=unused, address="hub", on_go_away=lambda: asked.append("go away")))
    async with asyncio.timeout(5):
        with pytest.raises(Ended) as ended:
            await theirs.open(NEWER, end=True).receive()
        assert (ended.value.code, ended.value.text) == (Reset.REFUSED, "unknown purpose")
        known = tunnel_pb2.StreamHeader(go_away=tunnel_pb2.GoAway(reason="restart")).SerializeToString()
        assert await theirs.open(known + NEWER, end=True).receive() is None
    assert asked == ["go away"]
    theirs.abort("over")


async def test_a_desired_set_of_a_newer_hub_is_applied_as_far_as_it_is_known(kube: KubeClient, hub: Hub, tmp_path: Path) -> None:
    """Fields that are not known beside and inside of objects change nothing; it is applied whole, and kept."""
    hub.want(1, 2)
    hub.reply = wire.FetchDesiredStateResponse.FromString(hub.reply.SerializeToString() + NEWER)
    for obj in hub.reply.objects:
        obj.MergeFromString(NEWER)
    agent = follower(hub, kube, tmp_path)
    await agent.sync()
    assert await names(kube, hub) == {1, 2}
    assert agent.applied_generation == hub.reply.generation
