"""Whether a caller may, at each resource that the request names; and how a refusal hides what may not be known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from google.protobuf.message import Message

from kubegems.policy.v1 import policy_pb2
from libs.faults import Fault, NotFound, PermissionDenied
from libs.rpc import fields
from libs.rpc.call import Call, Caller, Kind, Method

Authorise = Callable[[Call, Message], Awaitable[None]]
_USER = policy_pb2.Rule.USER
_NAMED = ("resource_name", "resource", "name")
_LOOKS = frozenset({"get", "list"})


def missing(name: str) -> NotFound:
    """The fault for a resource that is not there, or that the caller may not know of: the same words."""
    return NotFound(f"{name} does not exist", {"resource_name": name})


def same_as_missing(fault: Fault) -> Fault:
    """A handler's NotFound that names a resource, in the very words that hide one; any other fault as it is.

    The name is looked for in the metadata under `resource_name`, `resource` and `name`.
    """
    if not isinstance(fault, NotFound):
        return fault
    name = next((fault.metadata[key] for key in _NAMED if fault.metadata.get(key)), "")
    return missing(name) if name else fault


async def granted(call: Call, request: Message) -> None:
    """Trusts whoever let the call in: for services behind the gateway, whose decision came signed."""


class Authorisation:
    """Holds a method's permission against the caller's rights at every name in the rule's scope fields."""

    def __init__(self, methods: Iterable[Method]) -> None:
        methods = list(methods)
        self._scopes = {m.path: [fields.getter(m.descriptor.input_type, path) for path in m.rule.scope] for m in methods}
        self._get = dict(_get_permissions(m.rule.permission for m in methods))

    async def __call__(self, call: Call, request: Message) -> None:
        """Raises NotFound or PermissionDenied."""
        rule = call.method.rule
        if rule.auth != _USER:
            return
        if rule.filtered:
            self._filtered(call)
            return
        held = call.caller.rights.scopes(rule.permission)
        for name in self._named(call, request):
            if not held.covers(name):
                raise self._refusal(call, name)

    def _named(self, call: Call, request: Message) -> list[str]:
        names = [name for read in self._scopes[call.method.path] for name in read(request)]
        return names or [""]

    def _filtered(self, call: Call) -> None:
        """The handler filters by scope; only an act that the caller may do nowhere is refused here."""
        permission = call.method.rule.permission
        if permission.rsplit(".", 1)[-1] not in _LOOKS and call.caller.rights.scopes(permission).empty:
            raise _denied(permission, "")

    def _refusal(self, call: Call, scope: str) -> NotFound | PermissionDenied:
        name = scope or next(iter(call.resources), "")
        if name and call.caller.kind is Kind.USER and not self._sees(call.caller, name):
            return missing(name)
        return _denied(call.method.rule.permission, scope)

    def _sees(self, caller: Caller, name: str) -> bool:
        """Whether the caller may get the named resource, or the nearest above it that can be got."""
        parts = name.split("/")
        for end in range(len(parts) - len(parts) % 2, 0, -2):
            permission = self._get.get(parts[end - 2])
            if permission is not None:
                return caller.allows(permission, "/".join(parts[:end]))
        return False


def _get_permissions(permissions: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Collection → the permission to get one of it, such as `tenants` → `tenancy.tenants.get`."""
    for permission in permissions:
        _, _, rest = permission.partition(".")
        collection, _, verb = rest.rpartition(".")
        if verb == "get" and collection:
            yield collection, permission


def _denied(permission: str, scope: str) -> PermissionDenied:
    where = scope or "the platform"
    return PermissionDenied(f"needs the permission {permission} at {where}", {"permission": permission, "scope": scope})
