"""Rules over several fields."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from kubegems.policy.v1 import policy_pb2
from libs.faults import Invalid
from libs.rpc import validation

F = descriptor_pb2.FieldDescriptorProto
_number = itertools.count()


def kind(**rules: list[list[str]]) -> Any:
    """A message type with texts a and b, an optional number c and a message inner of itself, under a rule."""
    file = descriptor_pb2.FileDescriptorProto(name=f"together{next(_number)}.proto", syntax="proto3")
    file.package = "kubegems." + file.name.removesuffix(".proto")
    file.dependency.append("kubegems/policy/v1/policy.proto")
    message = file.message_type.add(name="M")
    message.oneof_decl.add(name="_c")
    for number, name in enumerate("ab", 1):
        message.field.add(name=name, number=number, type=F.TYPE_STRING, label=1)
    message.field.add(name="c", number=3, type=F.TYPE_INT32, label=1, oneof_index=0, proto3_optional=True)
    message.field.add(name="inner", number=4, type=F.TYPE_MESSAGE, type_name=f".{file.package}.M", label=1)
    message.field.add(name="many", number=5, type=F.TYPE_MESSAGE, type_name=f".{file.package}.M", label=3)
    rule = message.options.Extensions[policy_pb2.message]
    for name, sets in rules.items():
        for paths in sets:
            getattr(rule, name).add(fields=paths)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(f"{file.package}.M"))


def wrong(message: Any) -> dict[str, str]:
    """Field → what is wrong."""
    try:
        validation.validate(message)
    except Invalid as fault:
        return {v.field: v.description for v in fault.violations}
    return {}


def test_at_least_one() -> None:
    """One of the set suffices, also when it is an explicit zero; inner messages are told with their path."""
    kind_ = kind(at_least_one=[["a", "c"]])
    assert wrong(kind_()) == {"a": "one of a, c is required"}
    assert wrong(kind_(a="x")) == wrong(kind_(c=0)) == {}
    assert wrong(kind_(a="x", inner={}, many=[{"a": "y"}, {}])) == {
        "inner.a": "one of a, c is required",
        "many[1].a": "one of a, c is required",
    }


def test_mutually_exclusive() -> None:
    """Two of the set are too many; what is empty is not given."""
    kind_ = kind(mutually_exclusive=[["a", "b", "inner.a"]])
    assert wrong(kind_()) == wrong(kind_(a="x", inner={"b": "y"})) == {}
    assert wrong(kind_(a="x", b="y", inner={"a": "z"})) == {
        "b": "cannot be given together with a",
        "inner.a": "cannot be given together with a",
    }


def test_different() -> None:
    """The same value twice is refused without being shown; two absent values are not the same."""
    kind_ = kind(different=[["a", "b"]])
    assert wrong(kind_()) == wrong(kind_(a="x", b="y")) == {}
    assert wrong(kind_(a="hush", b="hush")) == {"b": "must differ from a"}


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"at_least_one": [["nope"]]}, "'nope', which is not there"),
        ({"different": [["a", "a.b"]]}, "'a' is no message"),
        ({"mutually_exclusive": [["a", "many.a"]]}, "'many' is no message"),
        ({"mutually_exclusive": [["a"]]}, "says nothing"),
    ],
)
def test_a_rule_that_cannot_hold_is_told_at_start(rules: Any, words: str) -> None:
    """Names that are not there, paths through lists and sets of one stop the service."""
    try:
        descriptor = kind(**rules).DESCRIPTOR
    except ValueError as error:  # pragma: no cover -- the checks are not compiled here
        pytest.fail(str(error))
    assert any(words in problem for problem in validation.problems(descriptor))
