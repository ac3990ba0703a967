"""Auth callout (NATS ADR-26): the broker asks who may connect, we answer with a short, signed user JWT or a refusal.

The mechanism only: what a certificate's name may do is decided by whoever makes the `Callout`. It listens in account
AUTH, where nobody else is. While it is away nobody new gets in, which is the safe side; those who are in stay until
their JWT ends, or until `libs.bus.system` ends them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
from cryptography import x509

from libs import log
from libs.bus import nkey
from libs.bus.bus import Bus
from libs.bus.connection import Tls
from libs.bus.received import Received
from libs.bus.server import HUB
from libs.clock import new_id
from libs.crypt.ca import spiffe_id
from libs.crypt.signing import signed_by
from libs.faults import Fault

_log = log.get("libs.bus.callout")
_SUBJECT = "$SYS.REQ.USER.AUTH"
_AUDIENCE = "nats-authorization-request"
_AT_ONCE = 32
_DECIDE = 3.0  # seconds; the broker gives up after 5
LIFETIME = timedelta(minutes=15)


class Refused(Exception):
    """The one who knocks may not come in; the text is logged, not sent."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a connection may do, and nothing else.

    Attributes:
        name: whose it is, by which it can be kicked.
        publish: subjects, wildcards allowed.
        subscribe: subjects, wildcards allowed.
    """

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


Decide = Callable[[str, str], Awaitable[Permissions]]


class Callout:
    """Answers the broker.

    Args:
        url: the broker's.
        tls: our (certificate, key, CA) files.
        seeds: folder with `callout.nk` and `issuer.nk` of `libs.bus.server.Keys`.
        decide: from SPIFFE id and serial number (hex) of a verified certificate to its permissions; raises Refused or a Fault.
        lifetime: how long a connection lasts before it is asked anew; no longer than its certificate.
        on_server: told the id of each server that asks.
    """

    def __init__(
        self, url: str, tls: Tls, seeds: Path, decide: Decide, *, on_server: Callable[[str], None], lifetime: timedelta = LIFETIME
    ) -> None:
        self._url, self._tls, self._seeds = url, tls, seeds
        self._issuer = nkey.load(seeds / "issuer.nk")
        self._decide = decide
        self._lifetime = int(lifetime.total_seconds())
        self._on_server = on_server

    async def run(self) -> None:
        """Answers until cancelled. Spawn it once per process; replicas share the questions."""
        bus = await Bus.connect(self._url, name="callout", tls=self._tls, nkey_seed_file=self._seeds / "callout.nk")
        slots = asyncio.Semaphore(_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as answers:
                async for received in bus.subscribe(_SUBJECT, queue="callout"):
                    if not received.gap:
                        await slots.acquire()
                        task = answers.create_task(self._answer(bus, received), name="callout answer")
                        task.add_done_callback(lambda _task: slots.release())
        finally:
            await bus.close()

    async def _answer(self, bus: Bus, received: Received) -> None:
        try:
            request = _request(received.data)
        except (ValueError, KeyError, TypeError) as error:
            _log.error("callout.malformed", error=repr(error))
            return
        self._on_server(request["server_id"]["id"])
        answer: dict[str, Any]
        try:
            async with asyncio.timeout(_DECIDE):
                certificate = _certificate(request)
                permissions = await self._decide(spiffe_id(certificate), f"{certificate.serial_number:x}")
            answer = {"jwt": self._user(request["user_nkey"], permissions, int(certificate.not_valid_after_utc.timestamp()))}
            _log.info("callout.admitted", who=permissions.name, host=request["client_info"].get("host"))
        except Exception as error:  # noqa: BLE001 -- whatever goes wrong, the answer is no
            answer = {"error": "not authorised"}
            _log.warning("callout.refused", host=request["client_info"].get("host"), reason=repr(error))
        body = {
            "sub": request["user_nkey"],
            "aud": request["server_id"]["id"],
            "nats": {"type": "authorization_response", "version": 2, **answer},
        }
        try:
            await bus.reply(received, self._sign(body).encode())
        except Fault as fault:
            _log.warning("callout.unanswered", error=str(fault))

    def _user(self, user_nkey: str, permissions: Permissions, until: int) -> str:
        return self._sign(
            {
                "sub": user_nkey,
                "aud": HUB,
                "name": permissions.name,
                "exp": min(int(time.time()) + self._lifetime, until),
                "nats": {
                    "type": "user",
                    "version": 2,
                    "pub": {"allow": list(permissions.publish)},
                    "sub": {"allow": list(permissions.subscribe)},
                    "subs": 64,
                    "data": -1,
                    "payload": 256 * 1024,
                },
            }
        )

    def _sign(self, claims: dict[str, Any]) -> str:
        claims = {"jti": new_id().hex, "iat": int(time.time()), "iss": nkey.public(self._issuer), **claims}
        signed = f"{_encode(orjson.dumps({'typ': 'JWT', 'alg': 'ed25519-nkey'}))}.{_encode(orjson.dumps(claims))}"
        return f"{signed}.{_encode(self._issuer.sign(signed.encode()))}"


def _request(token: bytes) -> dict[str, Any]:
    """The broker's question, its signature checked."""
    signed, _, signature = token.decode().rpartition(".")
    claims = orjson.loads(_decode(signed.partition(".")[2]))
    if claims["aud"] != _AUDIENCE or not claims["iss"].startswith("N"):
        raise ValueError("not a question of a broker")
    if not signed_by(_public(claims["iss"]), signed.encode(), _decode(signature)):
        raise ValueError("the signature is wrong")
    request: dict[str, Any] = claims["nats"]
    return request


def _certificate(request: dict[str, Any]) -> x509.Certificate:
    """The client's certificate, which the broker has verified against the hub's CA."""
    chains = (request.get("client_tls") or {}).get("verified_chains") or []
    if not chains or not chains[0]:
        raise Refused("no verified certificate")
    certificate = x509.load_pem_x509_certificate(chains[0][0].encode())
    if not spiffe_id(certificate):
        raise Refused("the certificate holds no name of ours")
    return certificate


def _public(text: str) -> bytes:
    """Raw Ed25519 key of a NATS public key: one byte of kind, 32 of key, 2 of checksum."""
    try:
        return base64.b32decode(text + "=" * (-len(text) % 8))[1:33]
    except binascii.Error as error:
        raise ValueError("not a NATS key") from error


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
