"""A hub that asks in the same breath as it greets, and one whose first request is broken off at once."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

from kubegems.agent.v1 import inventory_service_pb2, tunnel_pb2
from libs.crypt.signing import SigningKey
from libs.tunnel import Limits, Reset
from libs.tunnel.pings import wall_millis
from libs.tunnel.tcp import Connection, listen, server_tls
from services.gateway.link.grants import Grants
from tests.integration.link.rig import DEV, GET_INVENTORY, Rig, kubeconfig

METHOD = f"call:/{GET_INVENTORY.containing_service.full_name}/{GET_INVENTORY.name}"
ASK = inventory_service_pb2.GetInventoryRequest()


async def test_what_comes_with_the_greeting_is_served(rig: Rig, tmp_path: Path) -> None:
    """The agent answers a call that arrives together with the hub's greeting: its grant is not lost for those that follow."""
    uid, key, opened = str(uuid.uuid4()), SigningKey.generate("eager"), asyncio.Queue[Any]()
    tls = server_tls(rig.folder / "gateway.crt", rig.folder / "gateway.key", rig.folder / "ca.crt")

    def made(connection: Connection) -> None:
        hello = tunnel_pb2.Hello(
            protocols=(2, 1), session="s1", hub_uid="h1", time_millis=wall_millis(), grant_keys={key.kid: key.public}
        )  # fmt: skip
        connection.mux.hello(hello.SerializeToString())
        use = Grants(key, cluster_uid=uid, session="s1", now_millis=wall_millis).use(DEV, (METHOD,))
        header = tunnel_pb2.StreamHeader(call=tunnel_pb2.CallHeader(method=METHOD.removeprefix("call:"), grant=use))
        opened.put_nowait(connection.mux.open(header.SerializeToString(), ASK.SerializeToString(), end=True))

    async def refuse(stream: Any, _: bytes) -> None:
        stream.reset(Reset.REFUSED, "this hub only asks")

    server = await listen("127.0.0.1", 0, tls, lambda: Connection(odd=True, accept=lambda _: refuse, on_made=made, limits=Limits()))
    before, rig.port = rig.port, server.sockets[0].getsockname()[1]
    try:
        async with rig.agent(uid, kubeconfig(tmp_path / "k", "http://127.0.0.1:9"), online=False):
            reply = await asyncio.wait_for((await asyncio.wait_for(opened.get(), 10)).receive(), 10)
            assert inventory_service_pb2.GetInventoryResponse.FromString(reply).inventory.kubernetes_version == DEV.user
    finally:
        rig.port = before
        server.close()


async def test_a_first_request_that_is_broken_off_costs_the_next_nothing(rig: Rig, tmp_path: Path) -> None:
    """The grant that it carried comes again: whoever presses ^C at once is not locked out for half a minute."""
    uid = str(uuid.uuid4())
    async with rig.agent(uid, kubeconfig(tmp_path / "k", "http://127.0.0.1:9")):
        tunnel = rig.links._tunnels[uid]
        header = tunnel_pb2.CallHeader(method=METHOD.removeprefix("call:"), grant=tunnel.grants.use(DEV, (METHOD,)))
        stream = tunnel.mux.open(tunnel_pb2.StreamHeader(call=header).SerializeToString(), end=True)
        stream.reset(Reset.CANCELLED)
        assert (await rig.links.call(uid, GET_INVENTORY, ASK, DEV, 5)).inventory.kubernetes_version == DEV.user
