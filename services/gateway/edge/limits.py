"""How much is too much: by address before any signature is looked at, by caller after, by tenant last. In memory, per replica."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial

from kubegems.policy.v1 import policy_pb2
from libs.clock import Clock
from libs.faults import Exhausted
from libs.rpc.addresses import network
from libs.rpc.call import Call
from libs.rpc.peers import trusted
from services.gateway.edge.buckets import Buckets, Rate
from services.gateway.edge.turns import Crowded, Turns

_Rate = policy_pb2.Rule.Rate
_UNLIMITED, _STREAMS = _Rate.UNLIMITED, _Rate.STREAMS  # looked up once: an enum of protobuf is slow to ask
_KEY = "apiKeys:"  # what an API key's session starts with
FAILURE_COST = 10.0  # a bad token costs its address as much as ten calls
STREAMS_PER_CALLER = 100
PER_ADDRESS = Rate(500.0, 1000.0)
RATES: Mapping[int, Rate] = {
    _Rate.READS: Rate(200.0, 400.0),
    _Rate.WRITES: Rate(50.0, 200.0),
    _Rate.SIGN_IN: Rate(10.0, 60.0),
    _Rate.STREAMS: Rate(20.0, 100.0),
}


TENANT_RATES: Mapping[int, Rate] = {rate: of_caller.times(5.0) for rate, of_caller in RATES.items()}


class TooOften(Exhausted):
    """Too many calls in too short a time."""

    reason = "RATE_LIMITED"


class TooManyStreams(Exhausted):
    """Too many open streams."""

    reason = "TOO_MANY_STREAMS"


class Busy(Exhausted):
    """More is asked in a tenant's name than its fair part of what the hub can do at once."""

    reason = "TENANT_BUSY"


class Limits:
    """The pipeline's limiter. Calls of the platform's own parts are not limited.

    A caller without a tenant in its request is a flow of its own where turns are given out. What other services answer has
    turns of its own, so that a slow service holds up nobody else.

    Args:
        clock: the time.
        per_address: of one client address (of IPv6: its /64), all calls together.
        per_caller: of one caller, by rate class.
        per_tenant: of one tenant of weight 1, all its callers together, by rate class.
        weights: tenants that get more, or less, than others: `tenants/{tenant}` → factor.
        streams: open streams of one caller.
        slots: unary calls that run at once.
        most: addresses, callers and tenants that are remembered.
    """

    def __init__(
        self, clock: Clock, *, per_address: Rate = PER_ADDRESS, per_caller: Mapping[int, Rate] = RATES,
        per_tenant: Mapping[int, Rate] = TENANT_RATES, weights: Mapping[str, float] | None = None,
        streams: int = STREAMS_PER_CALLER, slots: int = 64, most: int = 50_000,
    ) -> None:  # fmt: skip
        self._per_address, self._per_caller, self._per_tenant = per_address, per_caller, per_tenant
        self._weights, self._most_streams, self._slots = dict(weights or {}), streams, slots
        self._addresses, self._callers, self._tenants = Buckets(clock, most=most), Buckets(clock, most=most), Buckets(clock, most=most)
        self._streams: dict[str, int] = {}
        self._turns: dict[str, Turns] = {}  # one for what is answered here, one for each service that is forwarded to

    def address(self, call: Call) -> None:
        """Before authentication; raises TooOften."""
        if trusted(call):
            return
        try:
            self.of_address(call.address)
        except TooOften:
            call.response_headers |= self._addresses.standing(network(call.address), self._per_address)
            raise

    def of_address(self, address: str) -> None:
        """The same for what is no RPC, such as `/k8s`; raises TooOften."""
        wait = self._addresses.take(network(address), self._per_address)
        if wait is not None:
            raise _too_often("this address", wait)

    def caller(self, call: Call) -> None:
        """After authentication, by caller and class of the method; raises TooOften or TooManyStreams."""
        rate = call.method.rule.rate
        if rate == _UNLIMITED or trusted(call):
            return
        who = _who(call)
        wait = self._callers.take((who, rate), self._per_caller[rate])
        call.response_headers |= self._callers.standing((who, rate), self._per_caller[rate])
        if wait is not None:
            raise _too_often(who, wait)
        if rate == _STREAMS:
            self._hold(who)

    def failed(self, call: Call) -> None:
        """A token that was no good."""
        self._addresses.charge(network(call.address), self._per_address, FAILURE_COST)

    def release(self, call: Call) -> None:
        """A call that was let in has ended."""
        if call.method.rule.rate != _STREAMS or trusted(call):
            return
        who = _who(call)
        left = self._streams.get(who, 1) - 1
        if left:
            self._streams[who] = left
        else:
            self._streams.pop(who, None)

    async def turn(self, call: Call) -> Callable[[], None] | None:
        """By tenant, for who may be there: raises TooOften, or waits for a fair turn and raises Busy when none comes."""
        rate = call.method.rule.rate
        if rate == _UNLIMITED or trusted(call):
            return None
        weight = self._weights.get(call.tenant, 1.0)
        if call.tenant:
            of_tenant = self._per_tenant[rate].times(weight)
            wait = self._tenants.take((call.tenant, rate), of_tenant)
            if wait is not None:
                call.response_headers |= self._tenants.standing((call.tenant, rate), of_tenant)
                raise _too_often(f"all callers of {call.tenant} together", wait)
        if call.method.streams:
            return None
        lane, who = self._lane(call), call.tenant or call.caller.name or network(call.address)
        try:
            await lane.enter(who, weight)
        except Crowded as error:
            raise Busy(f"too many calls of {who} wait for their turn; try again in 1 s", retry_after=timedelta(seconds=1)) from error
        return partial(lane.leave, who)

    def _lane(self, call: Call) -> Turns:
        name = call.method.descriptor.containing_service.full_name if call.method.forwarded else ""
        lane = self._turns.get(name)
        if lane is None:
            lane = self._turns[name] = Turns(self._slots)
        return lane

    def _hold(self, who: str) -> None:
        held = self._streams.get(who, 0)
        if held >= self._most_streams:
            raise TooManyStreams(
                f"{who} has {held} open streams, which is all it may have; close some first",
                {"open": str(held), "limit": str(self._most_streams)},
                retry_after=timedelta(seconds=5),
            )
        self._streams[who] = held + 1


def weights(text: str) -> dict[str, float]:
    """Reads `acme=4,globex=0.5`; ValueError for anything else."""
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, factor = part.partition("=")
        if not name or not 0 < float(factor) < math.inf:
            raise ValueError(f"{part!r} is no tenant=weight with a weight above 0")
        found[f"tenants/{name}"] = float(factor)
    return found


def _who(call: Call) -> str:
    """Who draws: an API key for itself, so that CI never slows its owner down; else the caller, else the address."""
    caller = call.caller
    return caller.session if caller.session.startswith(_KEY) else caller.name or network(call.address)


def _too_often(who: str, wait: timedelta) -> TooOften:
    return TooOften(f"too many calls from {who}; try again in {max(1, round(wait.total_seconds()))} s", retry_after=wait)
