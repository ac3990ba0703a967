"""What a removed cluster leaves at the broker, and how soon its tunnel ends."""

from __future__ import annotations

import asyncio
from typing import Any

from kubegems.fleet.v1 import cluster_service_pb2
from libs.bus import Bus, streams
from services.gateway.broker import Streams
from services.gateway.fleet.health_keeper import HealthKeeper
from services.gateway.tenancy.tests.house import House, house

__all__ = ["house"]


class _Tunnels:
    """Tunnels that are dropped when told."""

    def __init__(self, *uids: str) -> None:
        self.held = {uid: f"{uid}1" for uid in uids}

    def measures(self) -> dict[str, Any]:
        return {}

    def serials(self) -> dict[str, str]:
        return self.held

    def numbers(self) -> dict[str, int]:
        return {}

    def superseded(self, uid: str, number: int) -> None:
        raise AssertionError(uid, number)

    def disconnect(self, uid: str, why: str) -> bool:
        assert why
        return self.held.pop(uid, None) is not None


async def _delete(house: House, cluster: str) -> None:
    await house.call("ClusterService/DeleteCluster", cluster_service_pb2.DeleteClusterRequest(name=f"clusters/{cluster}", force=True))


async def test_a_removed_clusters_stream_goes_and_its_connections_with_it(house: House, nats_server: Any, eventually: Any) -> None:
    """Once each, also when the broker was away at the removal; a cluster that is there keeps its own."""
    bus = await Bus.connect(nats_server.url, name="gateway", tls=nats_server.tls(), nkey_seed_file=nats_server.seed_file())
    (gone, gone_uid), (_, kept_uid) = await house.cluster(), await house.cluster()
    put_out: list[str] = []

    async def end(uid: str) -> None:
        put_out.append(uid)

    keeping = Streams(bus, house.database, put_out=end)
    task = asyncio.create_task(keeping.run(), name="streams")
    try:

        async def there(uid: str) -> bool:
            return streams.cluster(uid).name in await bus.streams("CLUSTER_")

        await eventually(lambda: there(gone_uid), within=10, what="made")
        await _delete(house, gone)
        keeping.wake()
        await eventually(lambda: _not(there(gone_uid)), within=5, what="gone")
        assert put_out == [gone_uid]
        assert await there(kept_uid)
        keeping.wake()
        await eventually(lambda: _cleaned(house, gone_uid), within=5, what="remembered")
        assert put_out == [gone_uid]
    finally:
        task.cancel()
        await asyncio.wait([task])
        await bus.delete_stream(streams.cluster(kept_uid).name)
        await bus.close()


async def test_a_removed_clusters_tunnel_ends_within_five_seconds_on_every_gateway(house: House, eventually: Any) -> None:
    """Also where the removal was not asked for; a revoked certificate's too, without any word from the database."""
    (gone, gone_uid), (_, revoked_uid) = await house.cluster(), await house.cluster()
    for uid in (gone_uid, revoked_uid):
        await house.sql(
            "INSERT INTO fleet.certificates (serial, cluster_uid, issued, expires) VALUES ($1, $2, now(), now() + interval '1 day')",
            f"{uid}1", uid,
        )  # fmt: skip
    tunnels = _Tunnels(gone_uid, revoked_uid)
    task = asyncio.create_task(HealthKeeper(house.database, tunnels, house.clock).run(), name="health")
    try:
        await asyncio.sleep(0.3)
        assert set(tunnels.held) == {gone_uid, revoked_uid}
        for act, uid in (
            (lambda: _delete(house, gone), gone_uid),
            (lambda: house.sql("UPDATE fleet.certificates SET revoked = now() WHERE cluster_uid = $1", revoked_uid), revoked_uid),
        ):
            await act()
            await eventually(lambda uid=uid: uid not in tunnels.held, within=5, what="tunnel ended")
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _not(answer: Any) -> bool:
    return not await answer


async def _cleaned(house: House, uid: str) -> bool:
    return bool(await house.sql("SELECT 1 FROM fleet.removed_clusters WHERE uid = $1 AND cleaned IS NOT NULL", uid))
