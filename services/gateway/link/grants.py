"""Grants: as whom an agent may act, for at most a minute, bound to one cluster and one tunnel session."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kubegems.agent.v1 import tunnel_pb2
from libs.crypt.signing import SigningKey
from libs.faults import Invalid
from libs.tunnel.kubernetes import Target

LIFETIME_MILLIS = 60_000
QUARTER_LIFE = LIFETIME_MILLIS / 4 / 1000  # seconds
MOST_GROUPS = 500
_KEPT = 2000  # of one tunnel; whoever had a grant that is forgotten gets another
_SHOWN = 8  # streams that carry a grant itself; the first may be broken off before the agent reads it
READS = ("get", "list", "watch")
WRITES = ("create", "update", "patch", "delete", "deletecollection", "post", "put")


class Principal(Protocol):
    """As whom a call acts in a cluster."""

    @property
    def user(self) -> str:
        """`gems:user:{username}` or `gems:service:{task}`."""
        ...

    @property
    def uid(self) -> str:
        """The user's uid; empty for a service."""
        ...

    @property
    def groups(self) -> Sequence[str]:
        """Groups, each starting with `gems:`."""
        ...


@dataclass(frozen=True, slots=True)
class ServicePrincipal:
    """Unattended work, such as `gems:service:inventory`."""

    user: str
    uid: str = ""
    groups: tuple[str, ...] = ()


def verbs_for(target: Target) -> tuple[str, ...]:
    """The least class of verbs that covers a request; one grant serves all requests of its class."""
    if target.verb in READS:
        return READS
    return ("proxy",) if target.verb == "proxy" else WRITES


def checked(principal: Principal) -> Principal:
    """The same principal; Invalid when it is none that may be sent to a cluster."""
    names = (principal.user, *principal.groups)
    if not principal.user.startswith(("gems:user:", "gems:service:")) or any(
        not n.startswith("gems:") or not n.isprintable() for n in names
    ):
        raise Invalid("a call into a cluster needs a KubeGems user and KubeGems groups")
    if len(principal.groups) > MOST_GROUPS:
        raise Invalid(f"{principal.user} has {len(principal.groups)} groups on this cluster, at most {MOST_GROUPS} can be sent")
    return principal


@dataclass(slots=True)
class _Kept:
    id: str
    expire_millis: int
    signed: tunnel_pb2.SignedGrant
    counter: int = 0


_Key = tuple[str, str, tuple[str, ...], tuple[str, ...]]


class Grants:
    """Signs the grants of one tunnel, and keeps those that are good for another half of their life."""

    def __init__(self, key: SigningKey, *, cluster_uid: str, session: str, now_millis: Callable[[], int]) -> None:
        self._key = key
        self._cluster_uid = cluster_uid
        self._session = session
        self._now_millis = now_millis
        self._kept: dict[_Key, _Kept] = {}

    def use(self, principal: Principal, verbs: tuple[str, ...], *, quarters: int = 2) -> tunnel_pb2.GrantUse:
        """A grant for one stream, which must be opened next: the counter rises in the order of opening.

        Args:
            principal: as whom.
            verbs: what for.
            quarters: how much of its life the grant must still have, in quarters.
        """
        now = self._now_millis()
        key = (principal.user, principal.uid, tuple(principal.groups), verbs)
        kept = self._kept.get(key)
        if kept is None or kept.expire_millis - now < LIFETIME_MILLIS * quarters // 4:
            self._kept.pop(key, None)  # so that they stand in the order of their ends
            kept = self._kept[key] = self._signed(principal, verbs, now)
            self._tidy(now)
        kept.counter += 1
        shown = kept.signed if kept.counter <= _SHOWN else None
        return tunnel_pb2.GrantUse(signed=shown, id=kept.id, counter=kept.counter)

    def _signed(self, principal: Principal, verbs: tuple[str, ...], now: int) -> _Kept:
        checked(principal)  # whoever has a grant was checked when it was signed
        grant = tunnel_pb2.Grant(
            id=secrets.token_hex(12), user=principal.user, uid=principal.uid, groups=principal.groups, verbs=verbs,
            cluster_uid=self._cluster_uid, session=self._session, expire_millis=now + LIFETIME_MILLIS,
        )  # fmt: skip
        content = grant.SerializeToString()
        signed = tunnel_pb2.SignedGrant(grant=content, signature=self._key.sign(content), kid=self._key.kid)
        return _Kept(grant.id, grant.expire_millis, signed)

    def _tidy(self, now: int) -> None:
        while len(self._kept) > _KEPT or next(iter(self._kept.values())).expire_millis - now < LIFETIME_MILLIS // 2:
            del self._kept[next(iter(self._kept))]
