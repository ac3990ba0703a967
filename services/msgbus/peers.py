"""Peers: the replicas of msgbus behind one address. A stream lives on one of them; who asks another is passed on."""

from __future__ import annotations

import base64
from collections.abc import Callable

import orjson
from google.protobuf.message import DecodeError

from kubegems.messages.v1 import message_service_pb2 as wire
from libs import log
from libs.bus import Bus, subjects
from libs.faults import Fault

_SECONDS = 2.0
_YES, _NO = b"1", b"0"
_log = log.get("services.msgbus")
Update = Callable[[str, str, wire.UpdateSubscriptionRequest], bool]


class Peers:
    """Asks and answers other replicas over the bus, where only hub services may speak.

    Args:
        bus: the bus.
        replica: id of this one, lower-case letters and digits.
    """

    def __init__(self, bus: Bus, replica: str) -> None:
        self._bus = bus
        self.replica = replica

    async def update(self, user: str, id_: str, request: wire.UpdateSubscriptionRequest) -> bool:
        """Whether the replica that a stream's id names has it and gave it the new selectors."""
        replica = id_.partition("-")[0]
        if replica == self.replica:
            return False
        body = orjson.dumps({"user": user, "id": id_, "request": base64.b64encode(request.SerializeToString()).decode()})
        try:
            return await self._bus.request(subjects.replica(replica), body, _SECONDS) == _YES
        except Fault:
            return False  # nobody answers to that name: the replica is gone, and its streams with it

    async def serve(self, update: Update) -> None:
        """Answers until cancelled."""
        async for received in self._bus.subscribe(subjects.replica(self.replica)):
            if received.gap:
                continue
            try:
                asked = orjson.loads(received.data)
                request = wire.UpdateSubscriptionRequest.FromString(base64.b64decode(asked["request"]))
                await self._bus.reply(received, _YES if update(asked["user"], asked["id"], request) else _NO)
            except (ValueError, KeyError, TypeError, DecodeError, Fault) as error:
                _log.warning("peer.not_answered", error=repr(error))
