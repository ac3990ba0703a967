"""One request for every public RPC, as the API's document shows it: for tests that walk them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.contract.api import api

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Example:
    """A request.

    Attributes:
        name: the operation's, such as `TenantService.GetTenant`.
        method: of HTTP.
        path: with its examples filled in.
        body: the example; None for a call without one.
        streams: whether the answer has no end.
    """

    name: str
    method: str
    path: str
    body: Any
    streams: bool


def examples(**instead: str) -> Iterator[Example]:
    """One for each operation; `instead` replaces examples of path parameters by name."""
    for path, operations in api()["paths"].items():
        for verb, operation in operations.items():
            shown = {p["name"]: instead.get(p["name"], p.get("example", "x")) for p in operation["parameters"] if p["in"] == "path"}
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            filled = _PLACE.sub(lambda match, shown=shown: shown[match[1]], path)  # type: ignore[misc] # mypy cannot infer a lambda with a default
            yield Example(operation["operationId"], verb.upper(), filled, content.get("example"), "x-kubegems-stream" in operation)
