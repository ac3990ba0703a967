"""How much is too much: by address before any signature is looked at, by caller after. In memory, per replica."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache

from kubegems.policy.v1 import policy_pb2
from libs.clock import Clock
from libs.faults import Exhausted
from libs.rpc.call import Call
from libs.rpc.peers import trusted
from services.gateway.edge.buckets import Buckets, Rate

_Rate = policy_pb2.Rule.Rate
FAILURE_COST = 10.0  # a bad token costs its address as much as ten calls
STREAMS_PER_CALLER = 100
PER_ADDRESS = Rate(500.0, 1000.0)
RATES: Mapping[int, Rate] = {
    _Rate.READS: Rate(200.0, 400.0),
    _Rate.WRITES: Rate(50.0, 200.0),
    _Rate.SIGN_IN: Rate(10.0, 60.0),
    _Rate.STREAMS: Rate(20.0, 100.0),
}


class TooOften(Exhausted):
    """Too many calls in too short a time."""

    reason = "RATE_LIMITED"


class TooManyStreams(Exhausted):
    """Too many open streams."""

    reason = "TOO_MANY_STREAMS"


class Limits:
    """The pipeline's limiter. Calls of the platform's own parts are not limited.

    Args:
        clock: the time.
        per_address: of one client address (of IPv6: its /64), all calls together.
        per_caller: of one caller, by rate class.
        most: addresses, and callers, that are remembered.
    """

    def __init__(
        self, clock: Clock, *, per_address: Rate = PER_ADDRESS, per_caller: Mapping[int, Rate] = RATES, most: int = 50_000
    ) -> None:
        self._per_address, self._per_caller = per_address, per_caller
        self._addresses, self._callers = Buckets(clock, most=most), Buckets(clock, most=most)
        self._streams: dict[str, int] = {}

    def address(self, call: Call) -> None:
        """Before authentication; raises TooOften."""
        if not trusted(call):
            self.of_address(call.address)

    def of_address(self, address: str) -> None:
        """The same for what is no RPC, such as `/k8s`; raises TooOften."""
        wait = self._addresses.take(network(address), self._per_address)
        if wait is not None:
            raise _too_often("this address", wait)

    def caller(self, call: Call) -> None:
        """After authentication, by caller and class of the method; raises TooOften or TooManyStreams."""
        rate = call.method.rule.rate
        if rate == _Rate.UNLIMITED or trusted(call):
            return
        who = call.caller.name or network(call.address)
        wait = self._callers.take((who, rate), self._per_caller[rate])
        if wait is not None:
            raise _too_often(who, wait)
        if rate == _Rate.STREAMS:
            self._hold(who)

    def failed(self, call: Call) -> None:
        """A token that was no good."""
        self._addresses.charge(network(call.address), self._per_address, FAILURE_COST)

    def release(self, call: Call) -> None:
        """A call that was let in has ended."""
        if call.method.rule.rate != _Rate.STREAMS or trusted(call):
            return
        who = call.caller.name or network(call.address)
        left = self._streams.get(who, 1) - 1
        if left:
            self._streams[who] = left
        else:
            self._streams.pop(who, None)

    def _hold(self, who: str) -> None:
        held = self._streams.get(who, 0)
        if held >= STREAMS_PER_CALLER:
            raise TooManyStreams(f"{who} has {held} open streams; close some first", retry_after=timedelta(seconds=5))
        self._streams[who] = held + 1


@lru_cache(maxsize=4096)
def network(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is None:  # noqa: PLR2004 -- the version of IP
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed.ipv4_mapped or parsed) if parsed.version == 6 else str(parsed)  # noqa: PLR2004


def _too_often(who: str, wait: timedelta) -> TooOften:
    return TooOften(f"too many calls from {who}; try again in {max(1, round(wait.total_seconds()))} s", retry_after=wait)
