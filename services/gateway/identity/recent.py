"""What was asked for lately, bounded in number and in age."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from libs.clock import Clock

V = TypeVar("V")
IDLE = 60.0  # seconds unasked for after which something is forgotten
MOST = 20_000


@dataclass(slots=True)
class _Entry(Generic[V]):
    value: V
    loaded: float
    used: float


class Recent(Generic[V]):
    """Values by id, the longest unused first to go."""

    def __init__(self, clock: Clock, most: int = MOST) -> None:
        self._clock = clock
        self._most = most
        self._entries: OrderedDict[UUID, _Entry[V]] = OrderedDict()

    def get(self, id_: UUID) -> V | None:
        """The value, or None."""
        entry = self._entries.get(id_)
        if entry is None:
            return None
        entry.used = self._clock.monotonic()
        self._entries.move_to_end(id_)
        return entry.value

    def put(self, id_: UUID, value: V) -> None:
        """Keeps a value read just now."""
        now = self._clock.monotonic()
        self._entries[id_] = _Entry(value, now, now)
        self._entries.move_to_end(id_)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)

    def drop(self, id_: UUID) -> None:
        """Forgets a value."""
        self._entries.pop(id_, None)

    def keys(self) -> list[UUID]:
        """Ids of what is in use; what is idle is forgotten."""
        oldest = self._clock.monotonic() - IDLE
        while self._entries and next(iter(self._entries.values())).used < oldest:
            self._entries.popitem(last=False)
        return list(self._entries)

    def replace(self, ids: Iterable[UUID], values: Mapping[UUID, V], *, before: float) -> bool:
        """Takes over what was read of `ids` at `before` (monotonic): gone ones are forgotten. Whether anything differs.

        What was put meanwhile is newer and stays; equal values stay the same object, so that `is` tells a change.
        """
        changed = False
        for id_ in ids:
            entry = self._entries.get(id_)
            if entry is None or entry.loaded >= before:
                continue
            value = values.get(id_)
            if value is None:
                del self._entries[id_]
            elif value != entry.value:
                self._entries[id_] = _Entry(value, before, entry.used)
            else:
                entry.loaded = before
                continue
            changed = True
        return changed
