"""All RPCs of the protos, and the API's document as the gateway makes it of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from libs.rest.openapi import document
from libs.rpc import Method
from libs.rpc.registry import bind
from services.gateway.edge import docs

_PROTOS = Path(__file__).parents[2] / "protos"


def methods() -> list[Method]:
    """Every RPC, answered by nobody."""
    found = []
    for path in sorted(_PROTOS.rglob("*_service.proto")):
        name = str(path.relative_to(_PROTOS))[: -len(".proto")].replace("/", ".") + "_pb2"
        for service in importlib.import_module(name).DESCRIPTOR.services_by_name.values():
            found += [bind(descriptor, None) for descriptor in service.methods]
    return found


def api() -> dict[str, Any]:
    """The document."""
    return document(methods(), docs.about())
