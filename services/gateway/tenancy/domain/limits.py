"""Container defaults, without which a quota refuses plain workloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.faults import Violation
from libs.kube import quantity

DEFAULT = {"default": {"cpu": "500m", "memory": "512Mi"}, "default_request": {"cpu": "100m", "memory": "128Mi"}}
_RESOURCES = ("cpu", "memory", "ephemeral-storage")


def check(path: str, default: Mapping[str, str], request: Mapping[str, str]) -> list[Violation]:
    """What is wrong with container defaults."""
    found: list[Violation] = []
    for field, amounts in (("default", default), ("default_request", request)):
        for name, text in amounts.items():
            found += _amount(f"{path}.{field}[{name}]", name, text)
    if found:
        return found
    return [
        Violation(f"{path}.default_request[{name}]", f"{text} is more than the limit {default[name]}")
        for name, text in request.items()
        if name in default and quantity.compare(text, default[name]) > 0
    ]


def _amount(path: str, name: str, text: str) -> list[Violation]:
    if name not in _RESOURCES:
        return [Violation(path, f"containers have no {name}; known: {', '.join(_RESOURCES)}")]
    try:
        value = quantity.parse(text)
    except ValueError as error:
        return [Violation(path, str(error))]
    return [Violation(path, f"{text} is below zero")] if value < 0 else []


def items(limit_range: Mapping[str, Mapping[str, str]]) -> list[dict[str, Any]]:
    """The items of the LimitRange."""
    item: dict[str, Any] = {"type": "Container"}
    if limit_range.get("default"):
        item["default"] = dict(limit_range["default"])
    if limit_range.get("default_request"):
        item["defaultRequest"] = dict(limit_range["default_request"])
    return [item]
