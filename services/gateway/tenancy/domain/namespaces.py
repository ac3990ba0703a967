"""Which namespace an environment gets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

MAX_LENGTH = 63
_RESERVED = ("kube-", "kubegems", "gems-")


def reserved(namespace: str) -> bool:
    """Whether a namespace is Kubernetes' or KubeGems' own, whoever asks for it."""
    return namespace == "default" or namespace.startswith(_RESERVED)


def reserves(tenant: str) -> bool:
    """Whether all namespaces of a tenant of this name would be reserved, so that it cannot be a tenant's name."""
    return reserved(f"{tenant}-")


def problem(namespace: str, tenant: str, *, platform: bool) -> str:
    """What is wrong with a namespace that was asked for; empty when nothing is.

    Args:
        namespace: the one asked for.
        tenant: id of the tenant that asks.
        platform: whether a platform admin asks, who may name any that is not reserved.
    """
    if reserved(namespace):
        return f"{namespace} is reserved for the system"
    if not platform and not namespace.startswith(f"{tenant}-"):
        return f"{namespace} does not start with {tenant}-, as another than a platform admin's must"
    return ""


def candidates(tenant: str, project: str, environment: str, uid: str) -> Iterator[str]:
    """Names to try in order: the plain one, then with a hash that tells `a-b/c` from `a/b-c`, then one that nobody has."""
    plain = f"{tenant}-{project}-{environment}"
    if len(plain) <= MAX_LENGTH:
        yield plain
    yield _hashed(plain, f"{tenant}/{project}/{environment}")
    yield _hashed(plain, uid)


def _hashed(plain: str, source: str) -> str:
    suffix = "-" + hashlib.sha256(source.encode()).hexdigest()[:8]
    return plain[: MAX_LENGTH - len(suffix)].rstrip("-") + suffix
