"""What a request under `/k8s` needs of the API key that it came with. RBAC in the cluster decides beside it, about the owner."""

from __future__ import annotations

from collections.abc import Iterable

from libs.faults import PermissionDenied
from libs.rpc.call import Caller
from libs.tunnel.kubernetes import Target
from services.gateway.identity.narrowed import KeyRights

_CONNECT = "fleet.clusters.connect"
_OBJECTS = "workloads.objects."
_VERBS = {"get": "get", "list": "list", "watch": "list", "create": "create", "update": "update", "patch": "update"}
_RUNS = {"exec": "exec", "attach": "attach", "portforward": "portforward", "ephemeralcontainers": "debug", "log": "logs"}


class KeyForbids(PermissionDenied):
    """The API key does not give this."""

    reason = "API_KEY_FORBIDS"


def check(caller: Caller, target: Target, environment: str) -> None:
    """Raises KeyForbids unless the caller's key, if it uses one, gives all that the request needs.

    Args:
        caller: who asks.
        target: what it asks for.
        environment: name of the environment that the request's namespace belongs to; empty for none.
    """
    rights = caller.rights
    if not isinstance(rights, KeyRights):
        return
    for permission in needed(target):
        if not rights.limits.gives(permission):
            raise KeyForbids(f"the API key does not give {permission}, which this request needs", {"permission": permission})
    scope = rights.limits.scope
    if scope.startswith("tenants/") and not _inside(scope, target, environment):
        raise KeyForbids(f"the API key is good within {scope} only", {"scope": scope})


def needed(target: Target) -> Iterable[str]:
    """Permissions that a request needs of a key. What is not foreseen needs most."""
    yield _CONNECT
    run = _RUNS.get(target.subresource)
    if run is not None and (run != "logs" or target.reads):
        yield f"workloads.pods.{run}"
    elif target.verb == "proxy":
        yield "workloads.pods.portforward"
    elif target.resource:
        yield _OBJECTS + ("scale" if target.subresource == "scale" and not target.reads else _VERBS.get(target.verb, "delete"))
        if target.sensitive:  # writing a secret shows it, and an account's token is one
            yield "workloads.secrets.get"
    elif not target.reads:
        yield _OBJECTS + "delete"


def _inside(scope: str, target: Target, environment: str) -> bool:
    if not target.resource:
        return target.reads  # discovery
    return environment == scope or environment.startswith(scope + "/")
