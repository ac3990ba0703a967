"""As whom a user acts in a cluster, by user name."""

from __future__ import annotations

from libs.rpc.call import Caller
from services.gateway.identity.directory import Directory
from services.gateway.identity.narrowed import KeyRights
from services.gateway.identity.principals import Principal
from services.gateway.identity.store import no_such_user


class Principals:
    """Answers from the directory: never more than a second behind."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def principal(self, username: str, cluster_uid: str, within: str = "") -> Principal:
        """The user, uid and groups to impersonate; groups of memberships that touch `within`, if given.

        Raises:
            NotFound: there is no such user, or it is disabled: nobody acts as it.
            TooManyGroups: it has more than 500 memberships there.
        """
        standing = await self._directory.standing_of(username)
        if standing is None:
            raise no_such_user(username)
        return await self._directory.principal(standing, cluster_uid, within)

    async def of_caller(self, caller: Caller, cluster_uid: str) -> Principal:
        """The same for a caller, who may have come by an API key that is good at one place only."""
        within = caller.rights.limits.scope if isinstance(caller.rights, KeyRights) else ""
        return await self.principal(caller.id, cluster_uid, within if within.startswith("tenants/") else "")

    async def groups(self, username: str, cluster_uid: str) -> list[str]:
        """The groups alone."""
        return list((await self.principal(username, cluster_uid)).groups)
