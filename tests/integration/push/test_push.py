"""Push over real processes: two replicas, a broker that is killed and loses its tail, rights that change."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from typing import Any

import pytest

from kubegems.messages.v1 import event_pb2, message_service_pb2
from libs.faults import NotFound
from libs.kube.resources import CONFIG_MAPS, PODS
from tests.integration.push.gateway import ACME, GLOBEX
from tests.integration.push.rig import Rig
from tests.integration.push.viewer import Viewer

pytestmark = pytest.mark.timeout(120)
Event = event_pb2.Event


async def same(rig: Rig, viewer: Viewer, *namespaces: str, within: float = 20, eventually: Any) -> None:
    """The viewer's view becomes the cluster's list."""

    def check() -> None:
        listed = rig.cluster.listed(PODS, *namespaces)
        differing = {key for key in set(listed) | set(viewer.view) if listed.get(key) != viewer.view.get(key)}
        assert not differing, f"{len(differing)} of {len(listed)} differ: {sorted(differing)[:5]}"

    await eventually(check, within=within, what=f"view of {viewer.user} = list")


async def test_a_killed_broker_that_lost_its_tail_ends_in_the_clusters_list(rig: Rig, eventually: Any) -> None:
    """What was acknowledged and read by nobody, deletions at the very end among it, is healed though nothing changes any more."""
    rig.hub.grant("admin", everything=True)
    for i in range(50):
        await rig.cluster.put("acme", f"tail{i}")
    viewers = [rig.viewer("admin") for _ in range(4)]
    async with rig.viewing(*viewers):
        for viewer in viewers:
            await same(rig, viewer, eventually=eventually)
        kept = rig.keep_store()
        await rig.kill_replica(1)  # reads nothing of the tail
        for i in range(40):
            await rig.cluster.delete("acme", f"tail{i}")
        await rig.cluster.put("acme", "made-in-the-tail")
        await eventually(lambda: rig.cluster.observation.watermark().marks[0].counter >= 91, within=10)
        await rig.kill_nats()
        rig.restore(kept)
        await rig.start_nats()
        await rig.start_replica(1)
        for viewer in viewers:
            await same(rig, viewer, within=30, eventually=eventually)
        late = [rig.viewer("admin") for _ in rig.replicas]
        for i, viewer in enumerate(late):
            viewer.at = i  # the one that never read the tail among them
        async with rig.viewing(*late):
            for viewer in late:
                await same(rig, viewer, eventually=eventually)


async def test_a_tail_that_was_overwritten_is_missed_and_healed(rig: Rig, eventually: Any) -> None:
    """New messages under the sequences of lost ones do not hide the loss."""
    rig.hub.grant("admin", everything=True)
    viewers = [rig.viewer("admin") for _ in range(2)]
    async with rig.viewing(*viewers):
        for viewer in viewers:
            await same(rig, viewer, eventually=eventually)
        kept = rig.keep_store()
        for i in range(60):
            await rig.cluster.put("globex", f"over{i}")
        for viewer in viewers:
            await same(rig, viewer, eventually=eventually)
        await rig.kill_nats()
        rig.restore(kept)
        for i in range(60):
            await rig.cluster.delete("globex", f"over{i}")
        await rig.start_nats()
        for i in range(90):
            await rig.cluster.put("globex", f"more{i}")
        for viewer in viewers:
            await same(rig, viewer, within=30, eventually=eventually)


async def test_the_clients_of_a_killed_replica_go_on_at_the_other(rig: Rig, eventually: Any) -> None:
    """Streams are spread over both; after a kill all of them end in the list, resumed without loss or told RESYNC."""
    rig.hub.grant("admin", everything=True)
    rng = random.Random(1)
    seen: set[str] = set()
    await eventually(lambda: _both_reached(rig, seen), within=30, what="a channel that found both again")
    viewers = [rig.viewer("admin") for _ in range(6)]
    async with rig.viewing(*viewers):
        for viewer in viewers:
            await same(rig, viewer, eventually=eventually)
        replicas = {viewer.name.split("-")[0] for viewer in viewers}
        assert len(replicas) == 2, "round robin"
        churning = asyncio.create_task(rig.cluster.churn(rng, 400, every=0.005), name="churn")
        await asyncio.sleep(0.5)
        await rig.kill_replica(0)
        await churning
        for viewer in viewers:
            await same(rig, viewer, eventually=eventually)
        assert sum(viewer.breaks for viewer in viewers) > 0, "the control: some were cut off"
        await rig.start_replica(0)


async def _both_reached(rig: Rig, seen: set[str]) -> bool:
    """Whether streams have come from both replicas: gRPC waits for a while before it tries a killed one again."""
    async with aclosing(rig.subscribe("admin", message_service_pb2.SubscribeRequest())) as events:
        seen.add((await anext(events)).subscription.split("-")[0])
    return len(seen) > 1


async def test_rights_are_cut_and_given_while_the_stream_is_open(rig: Rig, eventually: Any) -> None:
    """Never an object outside the rights; a lost scope is told, a gained one sends what is there."""
    rig.hub.grant("dev", ACME)
    rig.hub.grant("admin", everything=True)
    await rig.cluster.put("acme", "mine")
    await rig.cluster.put("globex", "theirs")
    dev, admin = rig.viewer("dev"), rig.viewer("admin")
    dev.allowed = {"acme"}
    async with rig.viewing(dev, admin):
        await same(rig, dev, "acme", eventually=eventually)
        await same(rig, admin, eventually=eventually)
        await rig.cluster.churn(random.Random(2), 100)
        await same(rig, dev, "acme", eventually=eventually)
        dev.allowed = {"acme", "globex"}
        rig.hub.grant("dev", ACME, GLOBEX)
        await same(rig, dev, "acme", "globex", within=3, eventually=eventually)
        rig.hub.grant("dev", GLOBEX)
        await eventually(lambda: Event.SCOPE_REVOKED in dev.kinds, within=1, what="revocation told")
        dev.allowed = {"globex"}
        await rig.cluster.churn(random.Random(3), 100)
        await same(rig, dev, "globex", eventually=eventually)
        await same(rig, admin, eventually=eventually)
        assert dev.foreign == []


async def test_a_kind_beyond_the_base_set_is_observed_while_someone_watches(rig: Rig, eventually: Any) -> None:
    """Naming it makes msgbus report interest; what the agent lists then arrives before the snapshot ends; afterwards interest ends."""
    rig.hub.grant("dev", ACME)
    await rig.cluster.put("acme", "settings", CONFIG_MAPS)
    asked = message_service_pb2.SubscribeRequest(resources=["configmaps"], snapshot=True)
    async with aclosing(rig.subscribe("dev", asked)) as events:
        assert (await anext(events)).kind == Event.SUBSCRIBED
        await eventually(lambda: rig.hub.wanted == {"configmaps.."}, within=5, what="interest reported")
        await rig.cluster.observe(CONFIG_MAPS)
        found = await anext(events)
        assert (found.kind, found.change.object) == (Event.CHANGE, "settings")
        assert (await anext(events)).kind == Event.SNAPSHOT_END
        await rig.cluster.put("acme", "later", CONFIG_MAPS)
        assert (await anext(events)).change.object == "later"
    await eventually(lambda: not rig.hub.wanted, within=5, what="interest withdrawn")
    rig.cluster.stop(CONFIG_MAPS)


async def test_selectors_change_on_whichever_replica_the_update_arrives(rig: Rig, eventually: Any) -> None:
    """An update reaches the stream through the other replica too; another user's name for it is NOT_FOUND."""
    rig.hub.grant("dev", ACME)
    rig.hub.grant("eve", GLOBEX)
    await rig.cluster.put("acme", "blue", tier="blue")
    await rig.cluster.put("acme", "green", tier="green")
    selector = message_service_pb2.Selector(resources=["pods"], labels={"tier": "blue"})
    async with aclosing(rig.subscribe("dev", message_service_pb2.SubscribeRequest(selectors=[selector], snapshot=True))) as events:
        name = (await anext(events)).subscription
        assert [(await anext(events)).change.object, (await anext(events)).kind] == ["blue", Event.SNAPSHOT_END]
        for tier in ("green", "blue", "green"):  # in turn by one replica and the other
            other = message_service_pb2.Selector(resources=["pods"], labels={"tier": tier}, bodies=True)
            await rig.ask("UpdateSubscription", message_service_pb2.UpdateSubscriptionRequest(name=name, selectors=[other], snapshot=True))
            assert (await anext(events)).kind == Event.SUBSCRIBED
            shown = await anext(events)
            assert (shown.change.object, shown.change.body) == (tier, b'{"metadata":{"name":"it"},"data":{"a":"b"}}')
            assert (await anext(events)).kind == Event.SNAPSHOT_END
        assert rig.hub.asked[-1] == "dev /api/v1/namespaces/acme/pods/green"
        for _ in range(2):
            with pytest.raises(NotFound):
                await rig.ask("UpdateSubscription", message_service_pb2.UpdateSubscriptionRequest(name=name), user="eve")
        await rig.cluster.put("acme", "green", tier="red")  # it has left what is asked for
        gone = await anext(events)
        assert (gone.change.object, gone.change.verb) == ("green", event_pb2.Change.DELETED)
        assert gone.freshness.source == event_pb2.Freshness.LIVE


async def test_broker_away_for_a_while(rig: Rig, eventually: Any) -> None:
    """Streams stay open; what changed meanwhile arrives when it is back."""
    rig.hub.grant("dev", ACME)
    viewer = rig.viewer("dev")
    async with rig.viewing(viewer):
        await same(rig, viewer, "acme", eventually=eventually)
        await rig.kill_nats()
        await rig.cluster.churn(random.Random(4), 200)
        await rig.start_nats()
        await same(rig, viewer, "acme", within=30, eventually=eventually)
        assert viewer.breaks == 0


async def test_a_restarted_agent_is_listed_afresh(rig: Rig, eventually: Any) -> None:
    """Objects that went while no agent looked are gone from every view."""
    rig.hub.grant("dev", ACME)
    viewer = rig.viewer("dev")
    async with rig.viewing(viewer):
        await rig.cluster.put("acme", "short-lived")
        await same(rig, viewer, "acme", eventually=eventually)
        await rig.cluster.kill()
        await rig.cluster.delete("acme", "short-lived")
        rig.cluster.start()
        await rig.cluster.observe(PODS)
        await same(rig, viewer, "acme", eventually=eventually)
