"""Resource names of tenancy."""

from __future__ import annotations

import re

from libs.faults import Invalid

_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")
ANY = "-"


def valid(label: str) -> bool:
    """Whether a text can be the last part of a tenant's, project's or environment's name."""
    return bool(_LABEL.fullmatch(label))


def tenant(tenant_: str) -> str:
    """`tenants/{tenant}`."""
    return f"tenants/{tenant_}"


def project(tenant_: str, project_: str) -> str:
    """`tenants/{tenant}/projects/{project}`."""
    return f"tenants/{tenant_}/projects/{project_}"


def environment(tenant_: str, project_: str, environment_: str) -> str:
    """`tenants/{tenant}/projects/{project}/environments/{environment}`."""
    return f"tenants/{tenant_}/projects/{project_}/environments/{environment_}"


def scope(tenant_: str, project_: str = "", environment_: str = "") -> str:
    """The name of the level that the parts reach."""
    if environment_:
        return environment(tenant_, project_, environment_)
    return project(tenant_, project_) if project_ else tenant(tenant_)


def given(name: str, field: str, pattern: str) -> list[str]:
    """The ids in a name that a caller gave in a field; Invalid unless it is like the pattern, such as `tenants/{tenant}`."""
    collections, segments = pattern.split("/")[::2], name.split("/")
    if segments[::2] != collections or len(segments) != 2 * len(collections) or not all(segments):
        raise Invalid.one(field, f"{name!r} is not like {pattern}")
    return segments[1::2]


def parts(name: str) -> list[str]:
    """The ids in a name: every second segment, such as `["acme", "shop"]`."""
    return name.split("/")[1::2]
