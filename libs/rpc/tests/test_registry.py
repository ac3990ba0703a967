"""What refuses to start."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from kubegems.policy.v1 import policy_pb2
from libs.rpc import Refused, for_enrolment, for_services, methods, public
from libs.rpc.tests.doubles import MESSAGES, TENANTS, Messages, Tenants

Rule = policy_pb2.Rule
GOOD = {"auth": Rule.USER, "permission": "a.b.get", "audit": Rule.READ, "rate": Rule.READS}
_made = 0


def service(
    rule: dict[str, Any] | None, *, streaming: bool = False, client: bool = False, http: bool = False,
    field: dict[str, Any] | None = None, deprecated: bool = False,
) -> Any:  # fmt: skip
    """A service of one RPC `Do(Request{name, count, inner})` with this rule."""
    global _made  # noqa: PLW0603 -- each needs names of its own in the pool
    _made += 1
    file = descriptor_pb2.FileDescriptorProto(name=f"t{_made}.proto", package=f"kubegems.t{_made}", syntax="proto3")
    file.dependency.extend(["kubegems/policy/v1/policy.proto", "google/api/annotations.proto"])
    message = file.message_type.add(name="Request")
    name = message.field.add(name="name", number=1, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING, label=1)
    message.field.add(name="flag", number=2, type=descriptor_pb2.FieldDescriptorProto.TYPE_BOOL, label=1)
    if field is not None:
        target = message.field[1] if field.pop("on_flag", False) else name
        target.options.Extensions[policy_pb2.field].CopyFrom(policy_pb2.FieldRule(**field))
    rpc = file.service.add(name="Service").method.add(
        name="Do",
        input_type=f".{file.package}.Request",
        output_type=f".{file.package}.Request",
        server_streaming=streaming,
        client_streaming=client,
    )
    if rule is not None:
        rpc.options.Extensions[policy_pb2.rule].CopyFrom(Rule(**rule))
    rpc.options.deprecated = deprecated
    if http:
        rpc.options.Extensions[annotations_pb2.http].CopyFrom(http_pb2.HttpRule(get="/x"))
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return descriptor_pool.Default().FindServiceByName(f"{file.package}.Service")


class Servicer:
    """Answers Do."""

    async def Do(self, request: Any, call: Any) -> Any:
        return request


class Streamer:
    """Streams Do."""

    async def Do(self, request: Any, call: Any) -> AsyncIterator[Any]:
        yield request


@pytest.mark.parametrize(
    ("given", "servicer", "words"),
    [
        ({"rule": None}, Servicer(), "has no rule"),
        ({"rule": GOOD | {"auth": 0}}, Servicer(), "has no auth"),
        ({"rule": GOOD | {"audit": 0}}, Servicer(), "has no audit"),
        ({"rule": GOOD | {"rate": 0}}, Servicer(), "has no rate"),
        ({"rule": GOOD | {"permission": ""}}, Servicer(), "has no permission"),
        ({"rule": GOOD | {"permission": "a.b.fly"}}, Servicer(), "no role knows the permission 'a.b.fly'"),
        ({"rule": GOOD | {"auth": Rule.SERVICE_CERT}}, Servicer(), "for USER only"),
        ({"rule": GOOD | {"internal": True}}, Servicer(), "internal method cannot be for USER"),
        ({"rule": GOOD | {"scope": ["nmae"]}}, Servicer(), "no string field 'nmae'"),
        ({"rule": GOOD | {"scope": ["flag"]}}, Servicer(), "no string field 'flag'"),
        ({"rule": GOOD | {"scope": ["inner.name"]}}, Servicer(), "no message field 'inner'"),
        ({"rule": GOOD}, object(), "nothing answers it"),
        ({"rule": GOOD}, Streamer(), "must be an async function"),
        ({"rule": GOOD, "streaming": True}, Servicer(), "must be an async generator"),
        ({"rule": GOOD, "client": True}, Servicer(), "client streams are not served"),
        ({"rule": GOOD | {"audit": Rule.WRITE}, "streaming": True}, Streamer(), "must be external"),
        (
            {"rule": {"auth": Rule.SERVICE_CERT, "audit": Rule.NONE, "rate": Rule.UNLIMITED, "internal": True}, "http": True},
            Servicer(),
            "HTTP binding",
        ),
        ({"rule": GOOD, "deprecated": True}, Servicer(), "belong together"),
        ({"rule": GOOD | {"deprecation": {"since": "2026-01-01", "sunset": "2028-01-01"}}}, Servicer(), "belong together"),
        ({"rule": GOOD | {"deprecation": {"since": "soon", "sunset": "2028-01-01"}}, "deprecated": True}, Servicer(), "must be days"),
        ({"rule": GOOD | {"deprecation": {"since": "2026-01-01", "sunset": "2026-12-01"}}, "deprecated": True}, Servicer(), "365 days"),
        ({"rule": GOOD, "field": {"pattern": "("}}, Servicer(), "pattern"),
        ({"rule": GOOD, "field": {"required": True, "on_flag": True}}, Servicer(), "a bool cannot be required"),
        ({"rule": GOOD, "field": {"quantity": True, "on_flag": True}}, Servicer(), "can be a quantity"),
    ],
)
def test_refuses_to_start(given: Any, servicer: object, words: str) -> None:
    """Each mistake in a rule, a field or a servicer is named before any port opens."""
    with pytest.raises(Refused, match="Do") as refused:
        methods(service(**given), servicer, known_permissions={"a.b.get"})
    assert words in str(refused.value)


def test_tells_all_mistakes_at_once() -> None:
    """Two mistakes make two lines."""
    with pytest.raises(Refused) as refused:
        methods(service(GOOD | {"rate": 0, "scope": ["nope"]}), object())
    assert len(str(refused.value).splitlines()) == 3


def test_takes_what_is_right() -> None:
    """A complete service gives a method per RPC, with its path and kind."""
    found = methods(
        TENANTS,
        Tenants(),
        known_permissions={f"tenancy.tenants.{v}" for v in ["create", "get", "list", "update", "delete", "suspend", "resume"]},
    )
    assert [m.path for m in found][:2] == [
        "/kubegems.tenancy.v1.TenantService/CreateTenant",
        "/kubegems.tenancy.v1.TenantService/GetTenant",
    ]
    assert [m.streams for m in methods(MESSAGES, Messages()) if m.descriptor.name == "Subscribe"] == [True]


def test_listeners_part_methods_by_auth() -> None:
    """What is internal is on no public listener; services' and enrolment's methods are on their own only."""
    internal = {"audit": Rule.NONE, "rate": Rule.UNLIMITED, "internal": True}
    of = {a: methods(service(internal | {"auth": a}), Servicer())[0] for a in (Rule.SERVICE_CERT, Rule.JOIN_TOKEN, Rule.AGENT_CERT)}
    of[Rule.USER] = methods(service(GOOD), Servicer())[0]
    every = list(of.values())
    assert public(every) == [of[Rule.USER]]
    assert for_services(every) == [of[Rule.SERVICE_CERT]]
    assert for_enrolment(every) == [of[Rule.JOIN_TOKEN]]
