"""Callers that prove themselves by certificate: hub services and member clusters."""

from __future__ import annotations

from kubegems.policy.v1 import policy_pb2
from libs.faults import Unauthenticated
from libs.rpc.call import Call, Caller, Kind

HUB = "spiffe://kubegems/hub/"
CLUSTER = "spiffe://kubegems/cluster/"
TUNNEL = "tunnel"
_Auth = policy_pb2.Rule.Auth


async def by_peer(call: Call) -> Caller:
    """The caller that a certificate proves, of the kind that the method's rule demands; raises Unauthenticated."""
    peer = proved(call)
    auth = call.method.rule.auth
    if auth == _Auth.SERVICE_CERT and peer.startswith(HUB):
        return Caller(Kind.SERVICE, peer.removeprefix(HUB))
    if auth == _Auth.AGENT_CERT and peer.startswith(CLUSTER):
        uid = peer.removeprefix(CLUSTER)
        return Caller(Kind.AGENT, uid, uid)
    raise Unauthenticated(f"{call.method.path} needs a {_Auth.Name(auth)} client certificate")


def proved(call: Call) -> str:
    """The SPIFFE id that the carrier proved; on the tunnel it may stand in `credential`, where no client can put it."""
    return call.peer or (call.credential if call.transport == TUNNEL else "")


def trusted(call: Call) -> bool:
    """Whether the call comes from a part of the platform, so that its trace context is a parent and not a link."""
    return proved(call).startswith((HUB, CLUSTER))
