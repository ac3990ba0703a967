"""Bodies: the JSON of changed objects, read from the cluster as the subscriber, only for those who ask."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from weakref import WeakValueDictionary

import orjson

from kubegems.messages.v1.event_pb2 import Change
from libs.faults import Fault
from services.msgbus.sending import Pair

MOST_BYTES = 256 * 1024
AT_ONCE = 16  # of one cluster, and with one subscriber's events that go out together: so many bodies are in memory
_SECONDS = 5.0  # less than what a heartbeat leaves of the time that a stream may be silent
_OK, _FORBIDDEN, _NOT_FOUND = 200, 403, 404
Ask = Callable[[str, str, str], Awaitable[tuple[int, bytes]]]


class Bodies:
    """Fetches bodies for events that are about to be sent.

    Args:
        ask: cluster name, user and path to (HTTP status, body), as ClusterAccessService.RequestKubernetes gives them.
    """

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def add(self, user: str, pairs: Sequence[Pair]) -> None:
        """Fetches the bodies that items want into the events beside them."""
        wanted = [(item.event.change, event.change) for item, event in pairs if item.bodies and item.shown != Change.DELETED]
        if wanted:
            await asyncio.gather(*(self._one(user, of, change) for of, change in wanted))

    async def _one(self, user: str, of: Change, change: Change) -> None:
        slots = self._slots.setdefault(of.cluster, asyncio.Semaphore(AT_ONCE))  # a slow cluster holds nobody else's
        try:
            async with asyncio.timeout(_SECONDS), slots:
                status, body = await self._ask(of.cluster, user, path(of))
        except (Fault, TimeoutError):
            change.body_missing = "UNAVAILABLE"
            return
        if status == _OK and len(body) <= MOST_BYTES:
            change.body = _lean(body)
        else:
            change.body_missing = {_OK: "TOO_LARGE", _FORBIDDEN: "FORBIDDEN", _NOT_FOUND: "NOT_FOUND"}.get(status, "UNAVAILABLE")


def pieces(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Events that go out, as many at a time as may have their bodies in memory at once."""
    step = AT_ONCE if any(item.bodies for item, _ in pairs) else len(pairs)
    return (pairs[start : start + step] for start in range(0, len(pairs), step))


def path(change: Change) -> str:
    """Where the object is in its API server; its names were found harmless when the change was taken."""
    root = f"/apis/{change.group}/{change.version}" if change.group else f"/api/{change.version}"
    place = f"/namespaces/{change.namespace}" if change.namespace else ""
    return f"{root}{place}/{change.resource}/{change.object}"


def _lean(body: bytes) -> bytes:
    """The object without its field ownership records, which are half of it."""
    try:
        found = orjson.loads(body)
        found.get("metadata", {}).pop("managedFields", None)
        return orjson.dumps(found)
    except (orjson.JSONDecodeError, AttributeError):
        return body
