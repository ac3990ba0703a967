"""Tunnels of a gateway that is about to stop: asked to go elsewhere, alive until what is open on them has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from kubegems.agent.v1 import tunnel_pb2
from libs import log
from libs.tunnel import Mux, Reset, StreamEnded
from services.gateway.link.tunnel import Tunnel

_LOOK = 0.05
_LAST_WORDS = 0.2  # seconds for resets to leave before connections are dropped
_WHY = "this gateway is being restarted"
_log = log.get("services.gateway.link")


class Leaving:
    """Tunnels that others have taken the place of.

    Attributes:
        begun: whether the gateway is about to stop.
    """

    def __init__(self) -> None:
        self.begun = False
        self._tunnels: set[Tunnel] = set()

    def begin(self, tunnels: Iterable[Tunnel]) -> None:
        """Asks agents to go elsewhere; one that does not know the word refuses it, and is dropped at the end."""
        self.begun = True
        header = tunnel_pb2.StreamHeader(go_away=tunnel_pb2.GoAway(reason=_WHY)).SerializeToString()
        for tunnel in tunnels:
            try:
                tunnel.mux.open(header, end=True)
            except StreamEnded as error:
                _log.info("tunnel.not_told", cluster_uid=tunnel.uid, cause=str(error))

    def add(self, tunnel: Tunnel) -> None:
        """Its agent is connected to another gateway now."""
        self._tunnels.add(tunnel)

    def discard(self, tunnel: Tunnel) -> None:
        """It is gone."""
        self._tunnels.discard(tunnel)

    def of(self, mux: Mux) -> Tunnel | None:
        """The tunnel of a connection."""
        return next((tunnel for tunnel in self._tunnels if tunnel.mux is mux), None)

    def disconnect(self, uid: str, why: str) -> bool:
        """Drops those of a cluster; whether there were any."""
        found = [tunnel for tunnel in self._tunnels if tunnel.uid == uid]
        for tunnel in found:
            tunnel.mux.abort(why)
        return bool(found)

    def serials(self) -> dict[str, str]:
        """Serial number of the certificate of each, by cluster uid."""
        return {tunnel.uid: tunnel.serial for tunnel in self._tunnels}

    async def wait(self, held: Mapping[str, Tunnel], seconds: float, *, elsewhere: bool) -> None:
        """Until all agents are elsewhere (when there is such a place) and nothing is open, at most some seconds; then breaks off.

        Args:
            held: tunnels whose agents are still here.
            seconds: how long to wait.
            elsewhere: whether another gateway is there to go to.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until and not self._over(held, elsewhere=elsewhere):  # noqa: ASYNC110 -- streams end in many places
            await asyncio.sleep(_LOOK)
        left = [tunnel for tunnel in (*self._tunnels, *held.values()) if tunnel.mux.streams]
        for tunnel in left:
            tunnel.mux.reset_all(Reset.STOPPING, _WHY)
        if left:
            _log.warning("tunnels.broken_off", tunnels=len(left))
            await asyncio.sleep(_LAST_WORDS)

    def close(self) -> None:
        """Drops them."""
        for tunnel in list(self._tunnels):
            tunnel.mux.abort(_WHY)

    def _over(self, held: Mapping[str, Tunnel], *, elsewhere: bool) -> bool:
        for tunnel in [t for t in self._tunnels if not t.mux.streams]:
            tunnel.mux.abort("its agent is at another gateway")
        return not self._tunnels and not (held and elsewhere) and not any(t.mux.streams for t in held.values())
