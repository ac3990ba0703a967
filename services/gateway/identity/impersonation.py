"""As whom a user acts in a cluster, by user name."""

from __future__ import annotations

from services.gateway.identity.directory import Directory
from services.gateway.identity.principals import Principal
from services.gateway.identity.store import no_such_user


class Principals:
    """Answers from the directory: never more than a second behind."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def principal(self, username: str, cluster_uid: str) -> Principal:
        """The user, uid and groups to impersonate.

        Raises:
            NotFound: there is no such user, or it is disabled: nobody acts as it.
            TooManyGroups: it has more than 500 memberships there.
        """
        standing = await self._directory.standing_of(username)
        if standing is None:
            raise no_such_user(username)
        return await self._directory.principal(standing, cluster_uid)

    async def groups(self, username: str, cluster_uid: str) -> list[str]:
        """The groups alone."""
        return list((await self.principal(username, cluster_uid)).groups)
