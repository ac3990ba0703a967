"""Conflicts: which fields that the hub sets were set to something else by another field manager."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.agent.desired import domain
from services.agent.desired.domain import Object

_MOST = 20  # paths told of one manager


@dataclass(frozen=True, slots=True)
class FieldConflict:
    """Fields of one manager that the hub overwrites."""

    manager: str
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that is not as desired; a side that has none is None."""

    path: str
    live: Any
    desired: Any


def differences(live: Object, body: Object) -> list[Difference]:
    """Fields of what would be applied that the live object holds otherwise, but for the hub's own marks."""
    metadata = live["metadata"]
    found = list(_differ(live.get("spec") or {}, body["spec"], "spec"))
    for part in ("labels", "annotations"):
        wanted = {k: v for k, v in (body["metadata"].get(part) or {}).items() if k not in domain.OWN_MARKS}
        found += _differ(metadata.get(part) or {}, wanted, f"metadata.{part}")
    return found


def conflicts(live: Object, body: Object, ours: str) -> list[FieldConflict]:
    """Managers other than `ours` whose values would be overwritten, with the fields."""
    found: dict[str, set[str]] = {}
    for entry in live["metadata"].get("managedFields") or ():
        manager = entry.get("manager", "")
        if manager == ours or entry.get("subresource"):
            continue
        fields = entry.get("fieldsV1") or {}
        owned = [*_owned(fields.get("f:spec") or {}, live.get("spec") or {}, body["spec"], "spec")]
        for part in ("labels", "annotations"):
            wanted = {k: v for k, v in (body["metadata"].get(part) or {}).items() if k not in domain.OWN_MARKS}
            below = (fields.get("f:metadata") or {}).get(f"f:{part}") or {}
            owned += _owned(below, live["metadata"].get(part) or {}, wanted, f"metadata.{part}")
        if owned:
            found.setdefault(manager, set()).update(owned)
    return [FieldConflict(manager, tuple(sorted(paths)[:_MOST])) for manager, paths in sorted(found.items())]


def text(found: list[FieldConflict]) -> str:
    """A sentence for people."""
    return "; ".join(f"{c.manager or 'an unnamed manager'} had set {', '.join(c.paths)}" for c in found)


def _differ(live: Any, wanted: Any, path: str) -> Iterator[Difference]:
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        for key, value in wanted.items():
            yield from _differ(live.get(key), value, _below(path, key))
    elif not domain.covers(live, wanted):
        yield Difference(path, live, wanted)


def _owned(fields: Mapping[str, Any], live: Any, wanted: Any, path: str) -> Iterator[str]:
    """Paths among a manager's fields (`f:<name>`, lists whole) that are wanted otherwise."""
    for key, below in fields.items():
        name = key.removeprefix("f:")
        if not key.startswith("f:") or name not in wanted or domain.covers(live.get(name), wanted[name]):
            continue
        nested = isinstance(wanted[name], Mapping) and isinstance(live.get(name), Mapping)
        if nested and any(k.startswith("f:") for k in below):
            yield from _owned(below, live[name], wanted[name], _below(path, name))
        else:
            yield _below(path, name)


def _below(path: str, key: str) -> str:
    return f'{path}["{key}"]' if "." in key or "/" in key else f"{path}.{key}"
