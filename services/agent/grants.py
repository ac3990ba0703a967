"""Grants, as the agent sees them: signed by this hub, for this cluster and tunnel, not over, not used before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from kubegems.agent.v1 import tunnel_pb2
from libs.crypt.signing import signed_by
from libs.faults import PermissionDenied
from libs.kube import Principal

_LONGEST_MILLIS = 65_000  # a grant lives 60 s; the hub's clock is known to within a round trip
_MOST = 50_000
_FEW = 256  # so many are kept before it is looked which are over
_MOST_GROUPS = 500
CALL = "call:"


class GrantRefused(PermissionDenied):
    """The grant does not allow it; nothing was done."""

    reason = "GRANT_REFUSED"


@dataclass(slots=True)
class Held:
    """A grant that was good when it came."""

    grant: tunnel_pb2.Grant
    principal: Principal
    counter: int


class GrantBook:
    """The grants of one tunnel session.

    Args:
        cluster_uid: this cluster's.
        session: the tunnel's, from the hub's greeting.
        keys: the hub's public keys, by id.
        hub_millis: the hub's time.
    """

    def __init__(self, *, cluster_uid: str, session: str, keys: Mapping[str, bytes], hub_millis: Callable[[], int]) -> None:
        self._cluster_uid = cluster_uid
        self._session = session
        self._keys = dict(keys)
        self._hub_millis = hub_millis
        self._held: dict[str, Held] = {}
        self._tidied = _FEW

    def check(self, use: tunnel_pb2.GrantUse, need: str) -> Held:
        """The grant that a stream names, when it allows `need`: a Kubernetes verb, or `call:` and a method. Raises GrantRefused."""
        held = self._held.get(use.id) if use.id else None
        if held is None:
            held = self._admitted(use)
        if use.counter <= held.counter:
            raise GrantRefused("the grant was used before")
        held.counter = use.counter
        if self._hub_millis() >= held.grant.expire_millis:
            raise GrantRefused("the grant is over")
        if need not in held.grant.verbs and ("*" not in held.grant.verbs or need.startswith(CALL)):
            raise GrantRefused(f"the grant does not cover {need}")
        return held

    def seconds_left(self, held: Held) -> float:
        """How long a grant is still good."""
        return max(0.0, (held.grant.expire_millis - self._hub_millis()) / 1000)

    def _admitted(self, use: tunnel_pb2.GrantUse) -> Held:
        if not use.HasField("signed"):
            raise GrantRefused("the grant is not known here")
        key = self._keys.get(use.signed.kid)
        if key is None or not signed_by(key, use.signed.grant, use.signed.signature):
            raise GrantRefused("the grant is not signed by this hub")
        try:
            grant = tunnel_pb2.Grant.FromString(use.signed.grant)
        except DecodeError as error:
            raise GrantRefused("the grant cannot be read") from error
        self._judge(grant, use.id)
        held = Held(grant, _principal(grant), 0)
        self._tidy()
        self._held[grant.id] = held
        return held

    def _judge(self, grant: tunnel_pb2.Grant, named: str) -> None:
        if not grant.id or grant.id != named:
            raise GrantRefused("the grant is another than the one named")
        if grant.cluster_uid != self._cluster_uid or grant.session != self._session:
            raise GrantRefused("the grant is for another cluster or tunnel")
        if not 0 < grant.expire_millis - self._hub_millis() <= _LONGEST_MILLIS:
            raise GrantRefused("the grant is over, or good for too long")
        if not grant.verbs:
            raise GrantRefused("the grant allows nothing")

    def _tidy(self) -> None:
        if len(self._held) < self._tidied:
            return
        now = self._hub_millis()
        self._held = {k: v for k, v in self._held.items() if v.grant.expire_millis > now}
        self._tidied = min(max(_FEW, 2 * len(self._held)), _MOST)
        if len(self._held) >= _MOST:
            raise GrantRefused("too many grants at a time")


def _principal(grant: tunnel_pb2.Grant) -> Principal:
    """As whom to act: a user must be named, and neither user nor group may be Kubernetes' own."""
    if not grant.user.startswith(("gems:user:", "gems:service:")) or len(grant.groups) > _MOST_GROUPS:
        raise GrantRefused("the grant names no KubeGems user, or too many groups")
    try:
        return Principal(grant.user, grant.uid, tuple(grant.groups))
    except ValueError as error:
        raise GrantRefused("the grant names a user or group that is not KubeGems'") from error
