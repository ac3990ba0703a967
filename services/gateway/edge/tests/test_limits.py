"""Rate limits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from kubegems.messages.v1 import message_service_pb2
from kubegems.policy.v1 import policy_pb2
from kubegems.tenancy.v1 import tenant_service_pb2
from libs.clock import HeldClock
from libs.faults import Exhausted
from libs.rpc import Call, Caller, Kind
from libs.rpc.addresses import network
from libs.rpc.registry import bind
from services.gateway.edge.buckets import Buckets, Rate
from services.gateway.edge.limits import FAILURE_COST, RATES, STREAMS_PER_CALLER, TENANT_RATES, Limits, weights

_METHODS = {m.name: m for s in (tenant_service_pb2, message_service_pb2) for d in s.DESCRIPTOR.services_by_name.values() for m in d.methods}


def call(rpc: str = "GetTenant", address: str = "192.0.2.1", user: str = "", **more: Any) -> Call:
    """A call from an address, signed in or not."""
    made = Call(bind(_METHODS[rpc], None), address=address, **more)
    if user:
        made.caller = Caller(Kind.USER, user)
    return made


def test_an_address_is_slowed_down_and_comes_back() -> None:
    """A burst goes through, the next call is told when to come back, and does then."""
    clock = HeldClock()
    limits = Limits(clock, per_address=Rate(10, 5))
    for _ in range(5):
        limits.address(call())
    with pytest.raises(Exhausted) as caught:
        limits.address(call())
    assert caught.value.retry_after == timedelta(seconds=0.1)
    limits.address(call(address="192.0.2.2"))
    clock.advance(timedelta(seconds=0.1))
    limits.address(call())


def test_bad_tokens_cost_more() -> None:
    """Guessing tokens exhausts an address sooner than calling does."""
    limits = Limits(HeldClock(), per_address=Rate(1, 3 * FAILURE_COST))
    for _ in range(3):
        limits.failed(call())
    with pytest.raises(Exhausted):
        limits.address(call())


def test_debt_is_bounded() -> None:
    """However many tokens were guessed, the address is free again after two bursts' time."""
    clock = HeldClock()
    limits = Limits(clock, per_address=Rate(1, 10))
    for _ in range(1000):
        limits.failed(call())
    clock.advance(timedelta(seconds=11))
    limits.address(call())


def test_a_caller_is_limited_by_class_wherever_it_is() -> None:
    """Writes of one user are counted together from all addresses; reads and other users are not touched."""
    limits = Limits(HeldClock())
    for number in range(int(RATES[policy_pb2.Rule.WRITES].burst)):
        limits.caller(call("CreateTenant", f"192.0.2.{number % 200}", "dev"))
    with pytest.raises(Exhausted, match="users/dev"):
        limits.caller(call("CreateTenant", user="dev"))
    limits.caller(call("GetTenant", user="dev"))
    limits.caller(call("CreateTenant", user="ops"))


def test_open_streams_are_counted_until_they_end() -> None:
    """The limit of streams is of those open, not of those begun."""
    clock = HeldClock()
    limits = Limits(clock)
    for _ in range(STREAMS_PER_CALLER):
        clock.advance(timedelta(seconds=1))
        limits.caller(call("Subscribe", user="dev"))
    clock.advance(timedelta(seconds=100))
    with pytest.raises(Exhausted, match="open streams"):
        limits.caller(call("Subscribe", user="dev"))
    limits.release(call("Subscribe", user="dev"))
    limits.caller(call("Subscribe", user="dev"))


def test_the_platforms_own_parts_are_not_limited() -> None:
    """A call whose certificate was proved passes."""
    limits = Limits(HeldClock(), per_address=Rate(1, 1))
    for _ in range(100):
        limits.address(call(peer="spiffe://kubegems/hub/worker"))


def test_a_claimed_certificate_is_no_way_around() -> None:
    """A SPIFFE name sent as a token does not lift the limit."""
    limits = Limits(HeldClock(), per_address=Rate(1, 1))
    limits.address(call(credential="spiffe://kubegems/hub/worker"))
    with pytest.raises(Exhausted):
        limits.address(call(credential="spiffe://kubegems/hub/worker"))


def test_tables_are_bounded() -> None:
    """A flood of addresses does not grow the table; the oldest are forgotten, which forgives them."""
    buckets = Buckets(HeldClock(), most=100)
    for number in range(1000):
        buckets.take(number, Rate(1, 1))
    assert len(buckets) == 100


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("x", "x"),
    ],
)
def test_what_counts_as_one_client(address: str, counted: str) -> None:
    """Whoever has one IPv6 address has its whole /64."""
    assert network(address) == counted


def test_a_caller_is_told_where_it_stands() -> None:
    """Each counted call carries what is allowed, what is left and when it is whole again; so does the one that is refused."""
    limits = Limits(HeldClock())
    rate = RATES[policy_pb2.Rule.WRITES]
    first = call("CreateTenant", user="dev")
    limits.caller(first)
    assert first.response_headers == {
        "ratelimit-limit": str(int(rate.burst)), "ratelimit-remaining": str(int(rate.burst) - 1), "ratelimit-reset": "1",
    }  # fmt: skip
    for _ in range(int(rate.burst) - 1):
        limits.caller(call("CreateTenant", user="dev"))
    last = call("CreateTenant", user="dev")
    with pytest.raises(Exhausted):
        limits.caller(last)
    assert last.response_headers["ratelimit-remaining"] == "0"
    assert last.response_headers["ratelimit-reset"] == str(int(rate.burst / rate.per_second))


async def test_a_tenant_is_limited_whoever_calls() -> None:
    """Many users of one tenant draw from one bucket, a heavier tenant from a larger one, others are not touched."""
    limits = Limits(HeldClock(), weights={"tenants/big": 2.0})
    for tenant, factor in (("tenants/acme", 1), ("tenants/big", 2)):
        for number in range(int(TENANT_RATES[policy_pb2.Rule.WRITES].burst) * factor):
            leave = await limits.turn(call("UpdateTenant", user=f"u{number}", tenant=tenant))
            assert leave is not None
            leave()
        with pytest.raises(Exhausted, match=f"all callers of {tenant} together"):
            await limits.turn(call("UpdateTenant", user="another", tenant=tenant))
    leave = await limits.turn(call("UpdateTenant", user="dev", tenant="tenants/globex"))
    assert leave is not None


async def test_a_handler_that_names_another_tenant_gives_its_own_turn_back() -> None:
    """Handlers refine what a call is about; the turn is that of the tenant it was taken for."""
    limits = Limits(HeldClock(), slots=1)
    made = call("GetTenant", user="dev", tenant="tenants/acme")
    leave = await limits.turn(made)
    assert leave is not None
    made.tenant = "tenants/globex"
    leave()
    assert await limits.turn(call("GetTenant", user="dev", tenant="tenants/acme")) is not None


def test_weights_are_read_strictly() -> None:
    """`tenant=factor`, separated by commas."""
    assert weights("acme=4, globex=0.5") == {"tenants/acme": 4.0, "tenants/globex": 0.5}
    assert weights("") == {}
    for wrong in ("acme", "acme=", "acme=0", "acme=-1", "=1", "acme=inf", "acme=x"):
        with pytest.raises(ValueError):
            weights(wrong)


def test_an_api_key_draws_for_itself() -> None:
    """A key that calls too often is slowed down; its owner, and the owner's other keys, are not; streams are counted alike."""
    limits = Limits(HeldClock(), per_caller={**RATES, policy_pb2.Rule.READS: Rate(1, 2)}, streams=1)

    def by(session: str, rpc: str = "GetTenant") -> Call:
        made = call(rpc)
        made.caller = Caller(Kind.USER, "dev", "uid", session)
        return made

    for _ in range(2):
        limits.caller(by("apiKeys:ci:1"))
    with pytest.raises(Exhausted):
        limits.caller(by("apiKeys:ci:1"))
    limits.caller(by("apiKeys:other:2"))
    limits.caller(by("0192-a-session"))
    limits.caller(by("apiKeys:ci:1", "Subscribe"))
    with pytest.raises(Exhausted):
        limits.caller(by("apiKeys:ci:1", "Subscribe"))
    limits.release(by("apiKeys:ci:1", "Subscribe"))
    limits.caller(by("apiKeys:ci:1", "Subscribe"))
