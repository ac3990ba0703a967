"""Nobody hands out more than is held: what roles would give, held against the rights of whoever gives them."""

from __future__ import annotations

from collections.abc import Iterable

from libs.rpc.call import Caller, Scopes
from services.gateway.identity.api_key_domain import Escalation
from services.gateway.identity.domain import PlatformRole
from services.gateway.identity.rights import MemberRights, Membership, known_permissions


def refuse(giver: Caller, memberships: Iterable[Membership], username: str) -> None:
    """Raises Escalation when memberships give what the giver does not hold.

    Args:
        giver: who would give them, by session or by key.
        memberships: what would be given.
        username: to whom; its view of its own membership is nothing that anyone must hold.
    """
    for membership in memberships:
        rights = MemberRights(username, PlatformRole.USER, [membership])
        for permission in sorted(known_permissions()):
            held = giver.rights.scopes(permission)
            for name in _beyond(rights.scopes(permission), held, username):
                raise Escalation(
                    f"you do not hold {permission} at {name}, which {membership.role.name.lower()} at {membership.scope} gives",
                    {"permission": permission, "scope": name},
                )


def _beyond(given: Scopes, held: Scopes, username: str) -> Iterable[str]:
    """Names in a tenant at which something is given and not held."""
    if held.everything:
        return
    trees = Scopes(trees=held.trees)
    for name in sorted(given.trees):
        if name.startswith("tenants/") and not trees.covers(name):
            yield name
    for name in sorted(given.exact):
        if name.startswith("tenants/") and not name.endswith(f"/members/{username}") and not held.covers(name):
            yield name
