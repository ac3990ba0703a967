"""The fault for a thing that is not there, the same for one that the caller may not know of."""

from __future__ import annotations

from libs.faults import AlreadyExists, NotFound

_TYPES = {1: "Tenant", 2: "Project", 3: "Environment"}


def not_found(name: str, kind: str = "") -> NotFound:
    """No such thing; metadata as in google.rpc.ResourceInfo."""
    return NotFound(f"{name} does not exist", {"resource_type": f"kubegems.tenancy.v1.{kind or _kind(name)}", "resource_name": name})


def taken(name: str) -> AlreadyExists:
    """The name is in use, or was burnt by a forced removal."""
    return AlreadyExists(
        f"{name} is taken; choose another name", {"resource_type": f"kubegems.tenancy.v1.{_kind(name)}", "resource_name": name}
    )


def _kind(name: str) -> str:
    return _TYPES[(name.count("/") + 1) // 2]
