"""The agent's end, a process of its own: a bare multiplexer, a whole AgentLink, and an ordinary grpc.aio server with the same answers.

`agent.py FOLDER BARE_PORT LINK_PORT UID` tells the ports of its gRPC servers in one line (an ordinary one; one with
the pipeline of the AgentLink), then its CPU seconds for each line that it reads.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import inventory_service_pb2
from libs import rpc
from libs.kube.connection import Connection as Upstream
from libs.log import trace
from libs.rpc.call import Call, Caller, Kind
from libs.tunnel import Stream
from libs.tunnel.tcp import Connection, client_tls, dial
from services.agent.link import HUB_NAME, AgentLink, by_grant
from services.agent.proxy import Proxy

CHUNK, EVENT = b"x" * 64 * 1024, b"e" * 4096
INVENTORY = inventory_service_pb2.DESCRIPTOR.services_by_name["InventoryService"]


class Inventory:
    """Answers at once."""

    def __init__(self) -> None:
        self._reply = inventory_service_pb2.GetInventoryResponse()
        self._reply.inventory.kubernetes_version = "v1.36.0"

    async def GetInventory(self, _request: Any, _call: Call) -> inventory_service_pb2.GetInventoryResponse:
        """Always the same."""
        return self._reply


async def answer(stream: Stream, header: bytes) -> None:
    """The bare streams: `call` echoes a message, `body N` sends N raw chunks, `watch N` sends N messages."""
    what, _, count = header.decode().partition(" ")
    if what == "call":
        await stream.send(await stream.receive() or b"", end=True)
        return
    for _ in range(int(count)):
        await (stream.write(CHUNK) if what == "body" else stream.send(EVENT))
    stream.end()


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


async def _body(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield CHUNK


async def _watch(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield EVENT


def _grpc_server(folder: Path) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Call": grpc.unary_unary_rpc_method_handler(_echo),
        "Body": grpc.unary_stream_rpc_method_handler(_body),
        "Watch": grpc.unary_stream_rpc_method_handler(_watch),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Agent", handlers),))
    pair = [((folder / "agent.key").read_bytes(), (folder / "agent.crt").read_bytes())]
    tls = grpc.ssl_server_credentials(pair, (folder / "ca.crt").read_bytes(), require_client_auth=True)
    return server, server.add_secure_port("127.0.0.1:0", tls)


async def serve(folder: Path, bare: int, link: int, uid: str) -> None:
    """Dials the hub twice, serves gRPC, and tells its CPU time."""
    trace.setup("bench", endpoint=None)

    def tls() -> Any:
        return client_tls(folder / "agent.crt", folder / "agent.key", folder / "ca.crt")

    carrier = await dial("127.0.0.1", bare, tls(), lambda: Connection(odd=False, accept=lambda _: answer), server_name=HUB_NAME)
    carrier.mux.hello(b"agent")
    await carrier.mux.greeted(10)
    pipeline = rpc.Pipeline(rpc.methods(INVENTORY, Inventory()), peers=by_grant, registry=CollectorRegistry())
    proxy = Proxy(await Upstream.from_kubeconfig(folder / "kubeconfig"))
    whole = AgentLink(addresses=f"127.0.0.1:{link}", tls=tls, cluster_uid=uid, version="1.0", pipeline=pipeline, proxy=proxy)
    running = asyncio.create_task(whole.run(), name="link")
    await whole.wait_connected()
    server, port = _grpc_server(folder)
    await server.start()
    same = rpc.Server(rpc.Pipeline(rpc.methods(INVENTORY, Inventory()), peers=_known, registry=CollectorRegistry()))
    same_port = same.listen("127.0.0.1:0", rpc.Tls(folder / "agent.crt", folder / "agent.key", folder / "ca.crt"), require_client=True)
    await same.start()
    _tell([port, same_port])
    while await asyncio.to_thread(sys.stdin.readline):
        _tell(time.process_time())
    running.cancel()
    await server.stop(0)


async def _known(_call: Call) -> Caller:
    return Caller(Kind.SERVICE, "gateway", "")


def _tell(fact: Any) -> None:
    sys.stdout.write(f"= {json.dumps(fact)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
