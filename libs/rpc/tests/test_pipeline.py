"""The road of a call: order, rights, records, ways out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kubegems.identity.v1 import session_service_pb2, user_service_pb2
from kubegems.messages.v1 import message_service_pb2
from kubegems.policy.v1 import policy_pb2
from kubegems.tenancy.v1 import tenant_service_pb2 as pb
from libs.faults import Code, DeadlineExceeded, Exhausted, Invalid, NotFound, Precondition, Stale
from libs.log import trace
from libs.rpc import Call, Caller, Kind, NoRights, Pipeline, Scopes, methods
from libs.rpc.fields import replace_me
from libs.rpc.tests.doubles import MESSAGES, TENANTS, Messages, Records, Rights, Tenants, Unit, Units, Users, refused

CREATE, GET, LIST, SUSPEND = "CreateTenant", "GetTenant", "ListTenants", "SuspendTenant"


class Road:
    """A pipeline with its doubles."""

    def __init__(self, **extra: Any) -> None:
        self.tenants, self.messages = Tenants(), Messages()
        self.users, self.units, self.records = Users(), Units(), Records()
        served = [*methods(TENANTS, self.tenants), *methods(MESSAGES, self.messages)]
        self.pipeline = Pipeline(
            served, authenticate=self.users, units=self.units, audit=self.records, registry=CollectorRegistry(), **extra
        )

    def call(self, rpc: str, who: str = "admin", **more: Any) -> Call:
        service = "messages.v1.MessageService" if rpc == "Subscribe" else "tenancy.v1.TenantService"
        method = self.pipeline.method(f"/kubegems.{service}/{rpc}")
        assert method is not None
        return Call(method, credential=who, **more)

    async def unary(self, rpc: str, request: Any, who: str = "admin", **more: Any) -> Any:
        return await self.pipeline.unary(self.call(rpc, who, **more), request)


async def test_a_write_is_recorded_with_its_commit() -> None:
    """A WRITE leaves its record to the unit; nothing is recorded beside it."""
    road = Road()
    reply = await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme"))
    assert reply.name == "tenants/acme"
    assert (road.units.log, road.records.log) == (["commit"], [])


async def test_a_read_is_buffered() -> None:
    """A READ is recorded after it is done."""
    road = Road()
    await road.unary(GET, pb.GetTenantRequest(name="tenants/acme"))
    assert road.records.log == [("read", "OK")]


async def test_the_same_request_id_gets_the_same_answer() -> None:
    """The handler runs once."""
    road = Road()
    first = await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme", request_id="r1"))
    call = road.call(CREATE)
    assert await road.pipeline.unary(call, pb.CreateTenantRequest(tenant_id="acme", request_id="r1")) == first
    assert len(road.tenants.asked) == 1
    assert call.response_headers["kubegems-replayed"] == "true"


async def test_an_upload_is_no_repetition() -> None:
    """Its bytes come behind the request, so no answer that was given before may stand for them."""
    road = Road()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"others"

    request = pb.CreateTenantRequest(tenant_id="acme", request_id="r1")
    await road.unary(CREATE, request)
    call = road.call(CREATE, upload=chunks())
    await road.pipeline.unary(call, request)
    assert (len(road.tenants.asked), "kubegems-replayed" in call.response_headers) == (2, False)


async def test_a_caller_that_goes_during_the_commit_leaves_no_record_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit goes on without it, and its record is in there."""
    road, committing = Road(), asyncio.Event()

    async def commit(*_: Any) -> None:
        committing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Unit, "commit", commit)
    task = asyncio.create_task(road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme")), name="call")
    async with asyncio.timeout(5):
        await committing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert road.records.log == []


async def test_a_failure_rolls_back_and_is_recorded() -> None:
    """A fault of the handler goes out as it is; its record is one of its own."""
    road = Road()
    road.tenants.raises = Stale("etag 3 is not current")
    with refused(Code.ABORTED, "etag 3"):
        await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme"))
    assert road.units.log == ["rollback"]
    assert road.records.log == [("failed", "ABORTED")]


async def test_a_crash_says_nothing_but_an_id() -> None:
    """What is no fault becomes INTERNAL with the request's id and not one word of the cause."""
    road = Road()
    road.tenants.raises = RuntimeError("SELECT secret FROM users")
    with refused(Code.INTERNAL, "req-7") as caught:
        await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme"), request_id="req-7")
    assert "secret" not in str(caught.value)


async def test_a_cancelled_inner_task_is_answered() -> None:
    """A cancellation that is not the call's own becomes UNAVAILABLE instead of silence."""
    road = Road()
    road.tenants.raises = asyncio.CancelledError()
    with refused(Code.UNAVAILABLE, "interrupted"):
        await road.unary(GET, pb.GetTenantRequest(name="tenants/acme"))


async def test_a_caller_that_goes_cancels_the_handler() -> None:
    """The call's own cancellation reaches the handler, rolls back and is recorded."""
    road = Road()
    road.tenants.wait = asyncio.Event()
    task = asyncio.create_task(road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme")), name="call")
    while not road.tenants.asked:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert road.tenants.cancelled.is_set()
    assert road.units.log == ["rollback"]
    assert road.records.log == [("failed", "CANCELLED")]


async def test_the_deadline_ends_the_handler() -> None:
    """A caller's timeout cancels the handler and says DEADLINE_EXCEEDED."""
    road = Road()
    road.tenants.wait = asyncio.Event()
    with refused(Code.DEADLINE_EXCEEDED):
        await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme"), timeout=0.02)
    assert road.tenants.cancelled.is_set()


async def test_the_deadline_ends_a_streams_admission() -> None:
    """A stream that cannot even be let in ends when its caller's time is up."""

    async def never(call: Any) -> Any:
        await asyncio.Event().wait()

    pipeline = Pipeline(methods(MESSAGES, Messages()), authenticate=never, registry=CollectorRegistry())
    method = pipeline.method("/kubegems.messages.v1.MessageService/Subscribe")
    assert method is not None
    stream = pipeline.stream(Call(method, timeout=0.05), message_service_pb2.SubscribeRequest())
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(anext(stream), 5)


async def test_a_stranger_is_refused_and_recorded() -> None:
    """Without a good token nothing is looked at."""
    road = Road()
    with refused(Code.UNAUTHENTICATED):
        await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme"), who="nobody")
    assert road.records.log == [("denied", "UNAUTHENTICATED")]
    assert not road.tenants.asked


async def test_rights_are_held_at_the_scope() -> None:
    """A right at one tenant opens that tenant only; another one looks as if it were not there."""
    road = Road()
    road.users.known["dev"] = Rights(tenancy_tenants_get=Scopes(exact=frozenset({"tenants/acme"})))
    assert (await road.unary(GET, pb.GetTenantRequest(name="tenants/acme"), who="dev")).name == "tenants/acme"
    with refused(Code.NOT_FOUND, "tenants/globex does not exist"):
        await road.unary(GET, pb.GetTenantRequest(name="tenants/globex"), who="dev")
    with refused(Code.PERMISSION_DENIED, "tenancy.tenants.delete", "tenants/acme"):
        await road.unary("DeleteTenant", pb.DeleteTenantRequest(name="tenants/acme"), who="dev")
    with refused(Code.NOT_FOUND):
        await road.unary("DeleteTenant", pb.DeleteTenantRequest(name="tenants/globex"), who="dev")
    assert road.records.log[-2:] == [("denied", "PERMISSION_DENIED"), ("denied", "NOT_FOUND")]


async def test_a_missing_thing_and_a_hidden_one_look_the_same() -> None:
    """Message, reason and metadata of a handler's NOT_FOUND are those of a refusal that hides, whatever words the handler used."""
    road = Road()
    road.users.known["dev"] = Rights()
    road.tenants.raises = NotFound("there is no such tenant", {"resource_type": "Tenant", "resource_name": "tenants/acme"})
    request = pb.GetTenantRequest(name="tenants/acme")
    answers = []
    for who in ("admin", "dev"):
        with refused(Code.NOT_FOUND) as caught:
            await road.unary(GET, request, who=who)
        answers.append((caught.value.message, caught.value.reason, caught.value.metadata))
    assert answers[0] == answers[1]


async def test_platform_rights_are_asked_where_no_field_is_a_scope() -> None:
    """Suspending needs the right at the platform; who sees the tenant is told so, who does not is told nothing."""
    road = Road()
    road.users.known["dev"] = Rights(
        tenancy_tenants_get=Scopes(exact=frozenset({"tenants/acme"})), tenancy_tenants_suspend=Scopes(trees=frozenset({"tenants/acme"}))
    )
    with refused(Code.PERMISSION_DENIED, "the platform"):
        await road.unary(SUSPEND, pb.SuspendTenantRequest(name="tenants/acme"), who="dev")
    with refused(Code.NOT_FOUND):
        await road.unary(SUSPEND, pb.SuspendTenantRequest(name="tenants/globex"), who="dev")


async def test_a_filtered_list_is_open_to_all_users() -> None:
    """The handler filters; a user without any right reaches it too."""
    road = Road()
    road.users.known["dev"] = Rights()
    await road.unary(LIST, pb.ListTenantsRequest(), who="dev")
    assert road.tenants.asked


async def test_wrong_fields_never_reach_the_handler() -> None:
    """Validation stands before rights and handler, and is recorded as a failure."""
    road = Road()
    with refused(Code.INVALID_ARGUMENT, "tenant_id"):
        await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="NO"))
    assert not road.tenants.asked
    assert road.records.log == [("failed", "INVALID_ARGUMENT")]


async def test_every_scope_value_is_held_against_rights() -> None:
    """One selector outside of the caller's rights refuses the whole subscription; none at all asks for the platform."""
    road = Road()
    road.users.known["dev"] = Rights(
        messages_messages_subscribe=Scopes(trees=frozenset({"tenants/acme"})), tenancy_tenants_get=Scopes(trees=frozenset({"tenants/acme"}))
    )
    for scopes, code in ((["tenants/acme", "tenants/globex"], Code.NOT_FOUND), ([], Code.PERMISSION_DENIED)):
        request = road.call("Subscribe").method.request_class(scopes=scopes)
        with refused(code):
            await anext(road.pipeline.stream(road.call("Subscribe", "dev"), request))


class Ordered:
    """A limiter that tells when it was asked."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.refuse = ""

    def _asked(self, what: str) -> None:
        self.log.append(what)
        if self.refuse == what:
            raise Exhausted("too often")

    def address(self, _call: Call) -> None:
        self._asked("address")

    def caller(self, call: Call) -> None:
        self._asked(f"caller {call.caller.id}")

    def failed(self, _call: Call) -> None:
        self.log.append("failed")

    def release(self, _call: Call) -> None:
        self.log.append("release")

    async def turn(self, call: Call) -> Any:
        self._asked(f"turn {call.tenant}")
        return lambda: self.log.append("leave")


async def test_the_address_is_limited_before_signatures() -> None:
    """An exhausted address costs neither authentication nor a record."""
    limiter = Ordered()
    road = Road(limiter=limiter)
    limiter.refuse = "address"
    with refused(Code.RESOURCE_EXHAUSTED):
        await road.unary(GET, pb.GetTenantRequest(name="tenants/a"), who="nobody")
    assert (limiter.log, road.records.log) == (["address"], [])


async def test_what_a_callers_limit_refuses_leaves_no_record() -> None:
    """A flood of refused writes does not become a flood of rows."""
    limiter = Ordered()
    road = Road(limiter=limiter)
    limiter.refuse = "caller admin"
    with refused(Code.RESOURCE_EXHAUSTED):
        await road.unary(CREATE, pb.CreateTenantRequest(tenant_id="acme"))
    assert road.records.log == []


async def test_a_request_is_read_only_for_who_is_let_in() -> None:
    """A stranger's body is not even parsed; a caller's broken one is recorded as a failure."""
    road = Road()
    read: list[str] = []

    def broken() -> Any:
        read.append("read")
        raise Invalid("no message")

    with refused(Code.UNAUTHENTICATED):
        await road.pipeline.unary(road.call(CREATE, "nobody"), broken)
    assert read == []
    with refused(Code.INVALID_ARGUMENT):
        await road.pipeline.unary(road.call(CREATE), broken)
    assert road.records.log[-1] == ("failed", "INVALID_ARGUMENT")


@pytest.mark.parametrize(("peer", "joined"), [("", False), ("spiffe://kubegems/hub/gateway", True)])
async def test_trace_context_is_followed_from_our_own_parts_only(peer: str, *, joined: bool) -> None:
    """A certificate's holder continues its trace; a stranger's trace id is linked and ours is another."""
    trace.setup("test", endpoint=None)
    road = Road()
    theirs = "0af7651916cd43dd8448eb211c80319c"
    call = road.call(GET, traceparent=f"00-{theirs}-b7ad6b7169203331-01", peer=peer)
    await road.pipeline.unary(call, pb.GetTenantRequest(name="tenants/acme"))
    assert (call.response_headers["kubegems-trace-id"] == theirs) is joined


async def test_the_caller_is_limited_after_signatures_and_let_go() -> None:
    """Order is address, authentication, caller; the end of the call is told; a bad token costs the address."""
    limiter = Ordered()
    road = Road(limiter=limiter)
    await road.unary(GET, pb.GetTenantRequest(name="tenants/a"))
    assert limiter.log == ["address", "caller admin", "turn tenants/a", "leave", "release"]
    with refused(Code.UNAUTHENTICATED):
        await road.unary(GET, pb.GetTenantRequest(name="tenants/a"), who="nobody")
    assert limiter.log[5:] == ["address", "failed"]


async def test_a_tenant_is_asked_for_its_turn_only_for_who_may_be_there() -> None:
    """Who may not see a tenant cannot use up its turns; a refused turn runs no handler, leaves no record and is not left."""
    limiter = Ordered()
    road = Road(limiter=limiter)
    road.users.known["dev"] = NoRights()
    with refused(Code.NOT_FOUND):
        await road.unary(GET, pb.GetTenantRequest(name="tenants/globex"), who="dev")
    assert limiter.log == ["address", "caller dev", "release"]
    limiter.refuse = "turn tenants/a"
    records = list(road.records.log)
    with refused(Code.RESOURCE_EXHAUSTED):
        await road.unary(GET, pb.GetTenantRequest(name="tenants/a"))
    assert limiter.log[3:] == ["address", "caller admin", "turn tenants/a", "release"]
    assert road.records.log == records


def test_me_is_the_caller() -> None:
    """`users/me` and `sessions/current` become the caller's own names; secrets and look-alikes stay."""
    road = Road()
    call = road.call(GET)
    call.caller = Caller(Kind.USER, "dev", "u", "s1")
    request: Any = session_service_pb2.DeleteSessionRequest(name="users/me/sessions/current")
    replace_me(request, call)
    assert request.name == "users/dev/sessions/s1"
    request = user_service_pb2.ChangePasswordRequest(name="users/me", old_password="users/me", new_password="users/men")
    replace_me(request, call)
    assert (request.name, request.old_password) == ("users/dev", "users/me")
    request = user_service_pb2.GetUserRequest(name="users/melanie")
    replace_me(request, call)
    assert request.name == "users/melanie"


async def test_what_leaves_postgresql_is_recorded_before_and_after() -> None:
    """An external write commits its intent before the handler, its outcome after; without an intent it does not happen."""
    road = Road()
    method = road.call(CREATE).method
    rule = policy_pb2.Rule()
    rule.CopyFrom(method.rule)
    rule.external = True
    external = type(method)(method.descriptor, rule, method.request_class, method.response_class, method.handler)
    pipeline = Pipeline([external], authenticate=road.users, units=road.units, audit=road.records, registry=CollectorRegistry())
    await pipeline.unary(Call(external, credential="admin"), pb.CreateTenantRequest(tenant_id="acme"))
    assert road.records.log == [("intent", ""), ("outcome", "OK")]
    road.tenants.raises = Precondition("no")
    with refused(Code.FAILED_PRECONDITION):
        await pipeline.unary(Call(external, credential="admin"), pb.CreateTenantRequest(tenant_id="acme"))
    assert road.records.log[2:] == [("intent", ""), ("outcome", "FAILED_PRECONDITION")]
    asked, road.records.broken = len(road.tenants.asked), True
    with refused(Code.UNAVAILABLE):
        await pipeline.unary(Call(external, credential="admin"), pb.CreateTenantRequest(tenant_id="acme"))
    assert len(road.tenants.asked) == asked
