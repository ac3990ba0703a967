"""Store: an indexed copy of a kind's objects, and the changes that bring it up to date."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
Key = tuple[str, str]  # namespace, name
Index = Callable[[Object], Iterable[str]]


class Verb(enum.Enum):
    """What happened to an object; LISTED means that a whole list has been told."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    LISTED = "LISTED"


@dataclass(frozen=True, slots=True)
class Change:
    """One change; `object` is the trimmed object (the last known one for DELETED), empty for LISTED."""

    verb: Verb
    object: Object


LISTED = Change(Verb.LISTED, {})


def key_of(found: Object) -> Key:
    """Namespace (empty for cluster-scoped) and name of an object."""
    metadata = found["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(found: Object) -> str:
    """Resource version of an object."""
    return str(found["metadata"].get("resourceVersion", ""))


class Store:
    """Objects by key and by named indexes; `namespace` is always one of them."""

    def __init__(self, indexes: Mapping[str, Index] | None = None) -> None:
        self._objects: dict[Key, Object] = {}
        self._indexes: dict[str, Index] = {"namespace": lambda found: (key_of(found)[0],), **(indexes or {})}
        self._index: dict[str, dict[str, set[Key]]] = {name: {} for name in self._indexes}

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._objects.values()))

    def get(self, name: str, namespace: str = "") -> Object | None:
        """One object; None when there is none."""
        return self._objects.get((namespace, name))

    def find(self, index: str, value: str) -> list[Object]:
        """The objects under an index's value, in no order."""
        return [self._objects[key] for key in self._index[index].get(value, ())]

    def put(self, found: Object) -> Change | None:
        """Takes an object in; None when it is the one already here."""
        key = key_of(found)
        old = self._objects.get(key)
        if old is not None and version_of(old) == version_of(found):
            return None
        self._unindex(key, old)
        self._objects[key] = found
        for name, index in self._indexes.items():
            for value in index(found):
                self._index[name].setdefault(value, set()).add(key)
        return Change(Verb.ADDED if old is None else Verb.MODIFIED, found)

    def remove(self, key: Key, last: Object | None = None) -> Change | None:
        """Takes an object out; `last` is its final state where known. None when it was not here."""
        old = self._objects.pop(key, None)
        if old is None:
            return None
        self._unindex(key, old)
        return Change(Verb.DELETED, last or old)

    def keys(self) -> set[Key]:
        """The keys of all objects."""
        return set(self._objects)

    def _unindex(self, key: Key, old: Object | None) -> None:
        if old is None:
            return
        for name, index in self._indexes.items():
            for value in index(old):
                keys = self._index[name].get(value, set())
                keys.discard(key)
                if not keys:
                    self._index[name].pop(value, None)
