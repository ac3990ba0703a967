"""The client over a real gRPC listener with TLS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kubegems.messages.v1 import message_service_pb2, message_service_pb2_grpc
from kubegems.tenancy.v1 import tenant_service_pb2 as pb
from kubegems.tenancy.v1 import tenant_service_pb2_grpc
from libs.client import Client, Retries, credentials
from libs.client.retry import passing
from libs.client.tests.conftest import Hub
from libs.crypt.ca import Authority
from libs.faults import DeadlineExceeded, Exhausted, Fault, Internal, Invalid, NotFound, Precondition, Unauthenticated, Unavailable

Hubs = tuple[Hub, Callable[..., Client]]
ACME = pb.GetTenantRequest(name="tenants/acme")


def _tenants(client: Client) -> tenant_service_pb2_grpc.TenantServiceStub:
    return client.stub(tenant_service_pb2_grpc.TenantServiceStub)


def _subscribe(client: Client) -> Any:
    return client.stub(message_service_pb2_grpc.MessageServiceStub).Subscribe


async def test_an_api_key_is_sent_with_each_call(hub: Hubs) -> None:
    """A good one gets an answer, a wrong one and none get Unauthenticated; it does not stand in the repr."""
    made, client = hub
    async with client(api_key="kgk_key") as good:
        assert (await _tenants(good).GetTenant(ACME)).name == "tenants/acme"
    for options in ({"api_key": "kgk_wrong"}, {}):
        async with client(**options) as bad:
            with pytest.raises(Unauthenticated):
                await _tenants(bad).GetTenant(ACME)
    assert "kgk" not in repr(credentials.ApiKey("kgk_key"))
    assert made.keys == [""], "what reads needs no idempotency key"


async def test_faults_are_rebuilt(hub: Hubs) -> None:
    """Kind, reason, message, metadata and wrong fields are those that the hub gave."""
    made, client = hub
    async with client(api_key="kgk_key") as caller:
        with pytest.raises(NotFound) as absent:
            await _tenants(caller).GetTenant(pb.GetTenantRequest(name="tenants/none"))
        assert absent.value.metadata["resource_name"] == "tenants/none"
        with pytest.raises(Invalid) as invalid:
            await _tenants(caller).CreateTenant(pb.CreateTenantRequest(tenant_id="NOT GOOD"))
        assert [v.field for v in invalid.value.violations] == ["tenant_id"]
        made.failures.append(Precondition("no", {"a": "b"}))
        with pytest.raises(Precondition, match="no"):
            await _tenants(caller).GetTenant(ACME)


async def test_a_token_is_renewed_before_it_ends(hub: Hubs) -> None:
    """One that is about to end is renewed by the next call, once for all calls that need it."""
    made, client = hub
    made.lifetime = credentials.EARLY - 1
    async with client() as caller:
        assert await caller.sign_in("dev", "right") == "users/dev/sessions/1"
        made.lifetime = 600
        await asyncio.gather(*(_tenants(caller).GetTenant(ACME) for _ in range(20)))
        assert made.renewals == 1
        await caller.sign_out()
        with pytest.raises(Unauthenticated):
            await _tenants(caller).GetTenant(ACME)


async def test_a_token_is_renewed_while_nobody_calls(hub: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open stream needs its session: the client renews by itself, also after the hub was away."""
    made, client = hub
    monkeypatch.setattr(credentials, "_AGAIN", 0.02)
    made.lifetime, made.failures = credentials.EARLY - 1, [Unavailable("away")]
    async with client() as caller:
        await caller.sign_in("dev", "right")
        made.lifetime = 600
        async with asyncio.timeout(5):
            while not made.renewals:
                await asyncio.sleep(0.01)
    assert not made.failures


async def test_a_refused_token_is_renewed_once(hub: Hubs) -> None:
    """When the hub forgets a token early, another is fetched; when it gives none, the refusal stands."""
    made, client = hub
    async with client() as caller:
        await caller.sign_in("dev", "right")
        made.tokens.clear()
        assert (await _tenants(caller).GetTenant(ACME)).name == "tenants/acme"
        made.tokens.clear()
        made.renewals = 40  # the refresh token is no good any more
        with pytest.raises(Unauthenticated):
            await _tenants(caller).GetTenant(ACME)


async def test_a_wrong_password_is_not_tried_again(hub: Hubs) -> None:
    """Signing in and refreshing are sent once: the hub would count, or end the session."""
    made, client = hub
    async with client() as caller:
        with pytest.raises(Unauthenticated):
            await caller.sign_in("dev", "wrong")
        await caller.sign_in("dev", "right")
        made.failures += [Unavailable("away"), Unavailable("away")]
        with pytest.raises(Unavailable):
            await caller._refresh("refresh-0")
        assert len(made.failures) == 1


async def test_who_gives_up_does_not_lose_the_session(hub: Hubs) -> None:
    """A call cancelled while its token is being renewed: the renewal ends well, and the next call has the new token."""
    made, client = hub
    made.lifetime = 600
    async with client() as caller:
        await caller.sign_in("dev", "right")
        session, sent, fetch, go = caller._credential, [], caller._refresh, asyncio.Event()

        async def slow(token: str) -> Any:
            sent.append(token)
            await go.wait()
            return await fetch(token)

        assert isinstance(session, credentials.Session)
        session._refresh = slow
        made.tokens.clear()
        given_up = asyncio.ensure_future(_tenants(caller).GetTenant(ACME))
        async with asyncio.timeout(5):
            while not sent:
                await asyncio.sleep(0.005)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        go.set()
        assert (await _tenants(caller).GetTenant(ACME)).name == "tenants/acme"
        assert sent == ["refresh-0"]


async def test_a_write_keeps_its_key_through_all_attempts(hub: Hubs) -> None:
    """One key per call, the same in each attempt; another call has another."""
    made, client = hub
    async with client(api_key="kgk_key") as caller:
        made.failures += [Unavailable("away"), Exhausted("busy", retry_after=timedelta(milliseconds=5))]
        await _tenants(caller).CreateTenant(pb.CreateTenantRequest(tenant_id="acme"))
        await _tenants(caller).CreateTenant(pb.CreateTenantRequest(tenant_id="globex"))
    first, second, third, other = made.keys
    assert first == second == third != other
    assert len(first) == 36


@pytest.mark.parametrize("fault", [Internal("x"), Precondition("x"), NotFound("x"), Invalid("x")])
async def test_what_waiting_does_not_mend_is_raised_at_once(hub: Hubs, fault: Fault) -> None:
    """Attempts are for what passes."""
    made, client = hub
    assert not passing(fault)
    async with client(api_key="kgk_key") as caller:
        made.failures.append(fault)
        with pytest.raises(Fault):
            await _tenants(caller).CreateTenant(pb.CreateTenantRequest(tenant_id="acme"))
    assert len(made.keys) == 1


async def test_all_attempts_share_one_budget(hub: Hubs) -> None:
    """A hub that is away for good costs no more than the timeout, nor more attempts than allowed."""
    made, client = hub
    made.failures += [Unavailable("away") for _ in range(100)]
    async with client(api_key="kgk_key", retries=Retries(first=0.2, longest=1, most=100)) as caller:
        started = time.monotonic()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await _tenants(caller).GetTenant(ACME, timeout=0.8)
        assert time.monotonic() - started < 1.0
        assert 1 < len(made.keys) < 8
    made.keys.clear()
    async with client(api_key="kgk_key") as caller:
        with pytest.raises(Unavailable):
            await _tenants(caller).GetTenant(ACME)
    assert len(made.keys) == 6


async def test_the_hubs_wish_to_wait_is_granted(hub: Hubs) -> None:
    """`retry_after` is the least wait, and when it is beyond the budget the fault is raised at once."""
    made, client = hub
    async with client(api_key="kgk_key") as caller:
        made.failures.append(Exhausted("busy", retry_after=timedelta(seconds=0.3)))
        started = time.monotonic()
        await _tenants(caller).GetTenant(ACME)
        assert time.monotonic() - started > 0.29
        made.failures.append(Exhausted("busy", retry_after=timedelta(seconds=60)))
        started = time.monotonic()
        with pytest.raises(Exhausted):
            await _tenants(caller).GetTenant(ACME, timeout=5)
        assert time.monotonic() - started < 1


async def test_a_list_is_walked_to_its_end(hub: Hubs) -> None:
    """Whatever the page size, each item once, and the request is not changed."""
    _, client = hub
    async with client(api_key="kgk_key") as caller:
        for size in (0, 1, 3, 7):
            request = pb.ListTenantsRequest(page_size=size)
            found = [t.name async for t in caller.pages(_tenants(caller).ListTenants, request)]
            assert found == [f"tenants/t{i}" for i in range(7)]
            assert request.page_token == ""


async def test_a_stream_goes_on_after_the_last_event(hub: Hubs) -> None:
    """Broken off twice: every event once, opened with the token of the last one, each outage told."""
    made, client = hub
    made.events = [1, 2, Unavailable("away"), 3, Unavailable("away"), 4]
    lost: list[Fault] = []
    async with client(api_key="kgk_key") as caller:
        request = message_service_pb2.SubscribeRequest(snapshot=True)
        seen = [e.resume_token async for e in caller.stream(_subscribe(caller), request, lost=lost.append)]
    assert seen == ["1", "2", "4", "6"]
    assert made.asked == ["", "2", "4"]
    assert len(lost) == 2
    assert request.resume_token == ""


async def test_a_stream_ends_with_what_no_waiting_mends(hub: Hubs) -> None:
    """A lost right, or session, is raised after what came before it."""
    made, client = hub
    made.events = [1, Unauthenticated("over")]
    seen = []
    async with client(api_key="kgk_key") as caller:
        stream = caller.stream(_subscribe(caller), message_service_pb2.SubscribeRequest())
        seen.append((await anext(stream)).resume_token)
        with pytest.raises(Unauthenticated):
            await anext(stream)
    assert seen == ["1"]


async def test_a_stream_outlives_the_hub(serve: Callable[..., Any], tls: Any) -> None:
    """The hub goes down and comes back on the same port: the stream goes on by itself."""
    made = Hub(events=[1, 2])
    wait = asyncio.Event()

    async def endless(request: Any, _call: Any) -> Any:
        async for event in Hub.Subscribe(made, request, _call):
            yield event
        await wait.wait()

    made.Subscribe = endless  # type: ignore[method-assign] # this test's own answer
    async with serve(made) as (_, port):
        caller = Client(f"127.0.0.1:{port}", ca=tls.ca_file, api_key="kgk_key", retries=Retries(first=0.05, longest=0.2))
        stream = caller.stream(_subscribe(caller), message_service_pb2.SubscribeRequest())
        assert [(await anext(stream)).resume_token for _ in range(2)] == ["1", "2"]
        following = asyncio.ensure_future(anext(stream))
    made.events.append(3)
    async with serve(made, port), caller, aclosing(stream):
        async with asyncio.timeout(20):
            assert (await following).resume_token == "3"
    assert made.asked == ["", "2"]


async def test_another_ca_is_not_believed(hub: Hubs, tls: Any, tmp_path: Any) -> None:
    """A hub whose certificate is of somebody else's CA gets no token, and no call."""
    made, client = hub
    (tmp_path / "ca.crt").write_text(Authority.create("other", now=datetime.now(UTC))[0].certificate)
    async with client(api_key="kgk_key") as known:
        target = known._target
    async with Client(target, ca=tmp_path / "ca.crt", api_key="kgk_key", retries=Retries(most=1)) as caller:
        with pytest.raises(Unavailable):
            await _tenants(caller).GetTenant(ACME, timeout=2)
    assert made.keys == []
