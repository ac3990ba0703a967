"""`/tunnel`: agents' tunnels as WebSockets on the HTTPS edge."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from libs import log
from libs.clock import Clock
from libs.faults import Exhausted
from libs.tunnel.websocket import MOST_MESSAGE, PROTOCOL, Unproved, challenge
from services.gateway.link.links import Links

_CLOSED_POLICY = 1008
_log = log.get("services.gateway.link")


class TunnelSocket:
    """The handler. It is not for browsers: a request with an Origin is refused.

    Args:
        links: takes the tunnels.
        authorities: the CAs (PEM) that issue agents' certificates.
        clock: the time.
        limit: rate limit by client address, raising Exhausted; before anything is signed or checked.
    """

    def __init__(self, links: Links, authorities: str, clock: Clock, *, limit: Callable[[str], None] | None = None) -> None:
        self._links = links
        self._authorities = authorities
        self._clock = clock
        self._limit = limit

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One tunnel, for as long as it stands."""
        address = request.remote or ""
        if request.headers.get("Origin") is not None:
            return web.Response(status=web.HTTPForbidden.status_code, text="not for browsers")
        try:
            if self._limit is not None:
                self._limit(address)
        except Exhausted as fault:
            return web.Response(status=web.HTTPTooManyRequests.status_code, text=fault.message)
        if self._links.draining:
            return web.Response(status=web.HTTPServiceUnavailable.status_code, text="this gateway is being restarted")
        socket = web.WebSocketResponse(protocols=(PROTOCOL,), compress=False, max_msg_size=MOST_MESSAGE)
        if not socket.can_prepare(request).ok:
            return web.Response(status=web.HTTPUpgradeRequired.status_code, text="agents connect here by WebSocket")
        await socket.prepare(request)
        try:
            certificate = await challenge(socket, self._links.hub_uid, self._authorities, self._clock.now())
        except (Unproved, TimeoutError, ConnectionError) as error:
            _log.warning("tunnel.unproved", address=address, why=str(error))
            await socket.close(code=_CLOSED_POLICY, message=b"not proved")
            return socket
        connection = self._links.arrivals.socket_connection(socket, certificate, address)
        self._links.arrivals.made(connection)
        await connection.run()
        return socket
