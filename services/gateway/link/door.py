"""The door for tunnels: who stands there, by certificate, and the greeting that makes an agent's tunnel of it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from cryptography import x509
from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs.clock import Clock, new_id
from libs.crypt.ca import spiffe_id
from libs.crypt.signing import SigningKey
from libs.rpc.peers import CLUSTER
from libs.tunnel import Lost
from libs.tunnel.tcp import Connection
from libs.tunnel.websocket import SocketConnection
from services.gateway.link.grants import Grants
from services.gateway.link.peers import GATEWAY, PEER_STREAMS
from services.gateway.link.tunnel import Tunnel

GREETING_SECONDS = 10.0
Allowed = Callable[[str, str], Awaitable[bool]]
Number = Callable[[], Awaitable[int]]
AnyConnection = Connection | SocketConnection


class Refused(Exception):
    """It may not come in."""

    def __init__(self, why: str, uid: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.uid = uid


@dataclass(slots=True)
class Door:
    """Greets.

    Attributes:
        hub_uid: uid of this hub.
        version: of this program.
        protocols: versions of the protocol that this hub speaks, newest first.
        allowed: whether a cluster uid may connect with the certificate of a serial number (lower-case hex).
        number: the next tunnel's number; they rise over all gateways of the hub.
        clock: hub time.
        key: signs grants.
    """

    hub_uid: str
    version: str
    protocols: Sequence[int]
    allowed: Allowed
    number: Number
    clock: Clock
    key: SigningKey

    async def agent(self, connection: AnyConnection) -> tuple[Tunnel, float]:
        """The tunnel of an agent that is greeted, and the seconds its certificate is good for; raises Refused."""
        mux = connection.mux
        certificate = connection.certificate()
        uid = cluster_of(certificate)
        if certificate is None or not uid:
            raise Refused("no cluster's certificate")
        serial = f"{certificate.serial_number:x}"
        if not await self.allowed(uid, serial):
            raise Refused("certificate not allowed", uid)
        session = new_id().hex
        ours = tunnel_pb2.Hello(
            protocols=self.protocols, version=self.version, session=session, hub_uid=self.hub_uid,
            time_millis=self.now_millis(), grant_keys={self.key.kid: self.key.public},
        )  # fmt: skip
        theirs = await self._greeted(connection, ours, uid)
        protocol = next((p for p in self.protocols if p in theirs.protocols), 0)
        if not protocol:
            raise Refused("no common protocol", uid)
        tunnel = Tunnel(
            uid, theirs.version[:64], session, connection.peer, mux,
            Grants(self.key, cluster_uid=uid, session=session, now_millis=self.now_millis),
            self.clock.monotonic(), serial, protocol, await self.number(),
        )  # fmt: skip
        return tunnel, self._left(certificate)

    async def gateway(self, connection: AnyConnection) -> float:
        """Greets another gateway of this hub; the seconds its certificate is good for; raises Refused."""
        mux = connection.mux
        certificate = connection.certificate()
        assert certificate is not None, "is_gateway looked at it"
        mux.limits = replace(mux.limits, streams=PEER_STREAMS)
        hello = await self._greeted(connection, tunnel_pb2.Hello(version=self.version, hub_uid=self.hub_uid), "")
        if hello.hub_uid != self.hub_uid:
            raise Refused("another hub's gateway")
        return self._left(certificate)

    def now_millis(self) -> int:
        """Hub time, in milliseconds since 1970."""
        return int(self.clock.now().timestamp() * 1000)

    def _left(self, certificate: x509.Certificate) -> float:
        return (certificate.not_valid_after_utc - self.clock.now()).total_seconds()

    async def _greeted(self, connection: AnyConnection, ours: tunnel_pb2.Hello, uid: str) -> tunnel_pb2.Hello:
        connection.mux.hello(ours.SerializeToString())
        try:
            return tunnel_pb2.Hello.FromString(await connection.mux.greeted(GREETING_SECONDS))
        except (TimeoutError, Lost, DecodeError) as error:
            raise Refused("no greeting", uid) from error


def cluster_of(certificate: x509.Certificate | None) -> str:
    """The cluster uid that a certificate names; empty for none."""
    name = spiffe_id(certificate) if certificate is not None else ""
    uid = name.removeprefix(CLUSTER) if name.startswith(CLUSTER) else ""
    return "" if "/" in uid else uid


def counter() -> Number:
    """Numbers of one gateway that is alone."""
    numbers = itertools.count(1)

    async def number() -> int:
        return next(numbers)

    return number


def is_gateway(connection: AnyConnection) -> bool:
    """Whether another gateway dialled; the HTTPS edge is for agents alone."""
    certificate = connection.certificate() if isinstance(connection, Connection) else None
    return certificate is not None and spiffe_id(certificate) == GATEWAY
