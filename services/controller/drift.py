"""Whether what stands in the cluster is what is wanted, past the server's own defaults and spellings. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from libs.kube import quantity
from services.controller.domain import Object

_MAPS = ("default", "defaultRequest", "max", "min", "maxLimitRequestRatio")


def drifted(want: Object, have: Object) -> bool:
    """Whether `have` must be written: a label or annotation of ours is off, or a part that we own differs."""
    for field in ("labels", "annotations"):
        ours, theirs = want["metadata"].get(field) or {}, have["metadata"].get(field) or {}
        if not ours.items() <= theirs.items():
            return True
    return any(_plain(value) != _plain(have.get(part)) for part, value in want.items() if part != "metadata")


def overlaid(want: Object, have: Object) -> Object:
    """`have` made as wanted: our labels over its own, each part that we own replaced whole."""
    made = copy.deepcopy(have)
    for field in ("labels", "annotations"):
        if want["metadata"].get(field):
            made["metadata"][field] = {**(have["metadata"].get(field) or {}), **want["metadata"][field]}
    return made | {part: copy.deepcopy(value) for part, value in want.items() if part != "metadata"}


def role_changed(want: Object, have: Object) -> bool:
    """Whether a RoleBinding points elsewhere, which cannot be mended in place."""
    return bool("roleRef" in want and want["roleRef"] != have.get("roleRef"))


def same_quantities(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resource lists say the same, however they spell it."""
    return _quantities(one) == _quantities(other)


def _plain(part: Any) -> Any:
    if isinstance(part, Mapping) and "hard" in part:
        return {**part, "hard": _quantities(part["hard"])}
    if isinstance(part, Mapping) and "limits" in part:
        return {**part, "limits": [_limits(item) for item in part["limits"]]}
    return part


def _limits(item: Mapping[str, Any]) -> dict[str, Any]:
    """A LimitRange item with the server's defaults: max → default → defaultRequest ← min, for containers."""
    found = {field: _quantities(item.get(field) or {}) for field in _MAPS}
    if item["type"] == "Container":
        found["default"] = {**found["max"], **found["default"]}
        found["defaultRequest"] = {**found["min"], **found["default"], **found["defaultRequest"]}
    return {"type": item["type"], **found}


def _quantities(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _value(str(text)) for key, text in found.items()}


def _value(text: str) -> Any:
    try:
        return quantity.parse(text)
    except ValueError:
        return text  # not ours to judge: the server refuses it when it is written
