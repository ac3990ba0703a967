"""Who may use the message broker: an agent, by its certificate, for its own cluster's subjects and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path

from libs.bus import subjects
from libs.bus.callout import Callout, Permissions, Refused
from libs.bus.connection import Tls

_CLUSTER = "spiffe://kubegems/cluster/"
Allowed = Callable[[str], Awaitable[bool] | bool]


class NatsAuth:
    """Answers the broker's auth callout for agents. Hub services never come here: the broker knows their keys.

    Args:
        url: the broker's.
        tls: the gateway's (certificate, key, CA) files.
        seeds: folder with `callout.nk`, `system.nk` and `issuer.nk`.
        allowed: whether the cluster with a uid is joined and not revoked.
    """

    def __init__(self, url: str, tls: Tls, seeds: Path, allowed: Allowed) -> None:
        self._allowed = allowed
        self._callout = Callout(url, tls, seeds, self._decide)

    async def run(self) -> None:
        """Answers until cancelled."""
        await self._callout.run()

    async def revoke(self, uid: str) -> int:
        """Ends a cluster's connections, after `allowed` says no; how many there were."""
        return await self._callout.kick(connection_name(uid))

    async def _decide(self, spiffe: str) -> Permissions:
        uid = spiffe.removeprefix(_CLUSTER)
        if not spiffe.startswith(_CLUSTER) or not uid or subjects.token(uid) != uid:
            raise Refused(f"{spiffe} is no agent")
        allowed = self._allowed(uid)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not allowed:
            raise Refused(f"cluster {uid} is not joined")
        return permissions(uid)


def permissions(uid: str) -> Permissions:
    """What an agent may do; publishing into a stream needs its inbox, for the ack, and no more."""
    return Permissions(
        connection_name(uid),
        publish=(subjects.cluster(uid),),
        subscribe=(subjects.desired(uid), subjects.interest(uid), f"{subjects.inbox(uid)}.>"),
    )


def connection_name(uid: str) -> str:
    """What the broker calls an agent's connections."""
    return f"cluster-{uid}"
