"""Which methods which listener serves: no internal method is reachable where users are."""

from __future__ import annotations

from collections.abc import Iterable

from kubegems.policy.v1 import policy_pb2
from libs.rpc.call import Method

_Auth = policy_pb2.Rule.Auth


def public(methods: Iterable[Method]) -> list[Method]:
    """Methods of the public edge: none that is internal."""
    return [m for m in methods if not m.rule.internal]


def for_services(methods: Iterable[Method]) -> list[Method]:
    """Methods for hub services' certificates."""
    return [m for m in methods if m.rule.auth == _Auth.SERVICE_CERT]


def for_enrolment(methods: Iterable[Method]) -> list[Method]:
    """Methods for clusters that have no good certificate yet."""
    return [m for m in methods if m.rule.auth == _Auth.JOIN_TOKEN]


def for_agents(methods: Iterable[Method]) -> list[Method]:
    """Methods for member clusters, over the tunnel."""
    return [m for m in methods if m.rule.auth == _Auth.AGENT_CERT]
