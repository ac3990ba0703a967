"""Connections to the other gateways, made when a cluster is asked for whose tunnel another one holds."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import replace

from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.crypt.ca import spiffe_id
from libs.rpc.peers import HUB
from libs.tunnel import Limits, Lost, Mux, Reset, Stream
from libs.tunnel.tcp import Connection, dial
from services.gateway.link.forwarding import Forwarded
from services.gateway.link.presence import Presence

GATEWAY = f"{HUB}gateway"
PEER_STREAMS = 65_536  # all people's requests to all clusters of one gateway go over one connection
_NAME = "gateway.hub.kubegems.internal"
_DIAL_SECONDS = 3.0
_AGAIN_SECONDS = 0.5  # after a failure others fail at once for so long
_log = log.get("services.gateway.link")


class Peers:
    """The other gateways.

    Args:
        presence: who holds what.
        tls: makes the context of a dial, with the gateway's own certificate.
        hub_uid: of this hub.
        limits: of each connection.
    """

    def __init__(self, presence: Presence, tls: Callable[[], ssl.SSLContext], *, hub_uid: str, limits: Limits | None = None) -> None:
        self.presence = presence
        self._tls = tls
        self._hub_uid = hub_uid
        self._limits = replace(limits or Limits(), streams=PEER_STREAMS)
        self._muxes: dict[str, Mux] = {}
        self._dialling: dict[str, asyncio.Task[Mux | None]] = {}
        self._failed: dict[str, float] = {}

    @property
    def connected(self) -> Mapping[str, Mux]:
        """Connections that stand, by replica."""
        return {replica: mux for replica, mux in self._muxes.items() if mux.alive}

    def holds(self, uid: str) -> bool:
        """Whether another gateway that lives holds a cluster's tunnel."""
        return self.presence.holder(uid) is not None

    async def road(self, uid: str) -> Forwarded | None:
        """The road through the gateway that holds a cluster's tunnel; None when none does, or it cannot be reached."""
        holder = self.presence.holder(uid)
        if holder is None:
            return None
        mux = self._muxes.get(holder.replica)
        if mux is None or not mux.alive:
            mux = await self._connected(holder)
        return Forwarded(uid, mux) if mux is not None else None

    def close(self) -> None:
        """Drops the connections."""
        for task in self._dialling.values():
            task.cancel()
        for mux in self._muxes.values():
            mux.abort("the gateway stops")

    async def _connected(self, holder: tunnel_pb2.TunnelHolder) -> Mux | None:
        """A connection, dialled once however many ask; whoever of them goes, the others have it."""
        replica = holder.replica
        self._tidy()
        if replica in self._failed:
            return None
        task = self._dialling.get(replica)
        if task is None:
            task = self._dialling[replica] = asyncio.create_task(self._dial(holder), name=f"dial gateway {replica}")
            task.add_done_callback(lambda _: self._dialling.pop(replica))
        return await asyncio.shield(task)

    async def _dial(self, holder: tunnel_pb2.TunnelHolder) -> Mux | None:
        replica = holder.replica
        try:
            async with asyncio.timeout(_DIAL_SECONDS):
                mux = self._muxes[replica] = await self._dialled(holder.address)
        except (OSError, TimeoutError, Lost, DecodeError, ValueError) as error:
            self._failed[replica] = asyncio.get_running_loop().time()
            _log.warning("peer.away", replica=replica, address=holder.address, cause=repr(error))
            return None
        _log.info("peer.connected", replica=replica, address=holder.address)
        return mux

    async def _dialled(self, address: str) -> Mux:
        host, _, port = address.rpartition(":")
        connection = await dial(
            host.strip("[]"), int(port), self._tls(),
            lambda: Connection(odd=False, accept=lambda _: _refused, limits=self._limits, name="peer tunnel"),
            server_name=_NAME,
        )  # fmt: skip
        mux = connection.mux
        try:
            await self._greet(connection)
        except BaseException:
            mux.abort("not greeted")
            raise
        return mux

    async def _greet(self, connection: Connection) -> None:
        certificate = connection.certificate()
        if certificate is None or spiffe_id(certificate) != GATEWAY:
            raise ValueError("the other end is no gateway")
        connection.mux.hello(tunnel_pb2.Hello(hub_uid=self._hub_uid).SerializeToString())
        hello = tunnel_pb2.Hello.FromString(await connection.mux.greeted(_DIAL_SECONDS))
        if hello.hub_uid != self._hub_uid:
            raise ValueError("the other end is another hub's gateway")

    def _tidy(self) -> None:
        """Forgets gateways that are gone, and failures of long ago."""
        self._muxes = {replica: mux for replica, mux in self._muxes.items() if mux.alive}
        since = asyncio.get_running_loop().time() - _AGAIN_SECONDS
        self._failed = {replica: at for replica, at in self._failed.items() if at > since}


async def _refused(stream: Stream, header: bytes) -> None:
    """Who was dialled asks for nothing."""
    del header
    stream.reset(Reset.REFUSED, "not served")
