"""Pages continue where they ended, for the same caller and query only."""

import dataclasses
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from kubegems.audit.v1 import audit_service_pb2 as pb
from kubegems.policy.v1 import policy_pb2
from libs.faults import Invalid
from libs.pg.paging import Pages
from libs.rpc.call import Call, Caller, Kind, Method

PAGES = Pages(b"k" * 32)


def a_call(user: str = "dev", method: str = "ListAuditEvents") -> Call:
    descriptor = pb.DESCRIPTOR.services_by_name["AuditService"].methods_by_name[method]
    handler: Any = None
    found = Method(descriptor, policy_pb2.Rule(), pb.ListAuditEventsRequest, pb.ListAuditEventsResponse, handler)
    return Call(method=found, caller=Caller(Kind.USER, user, uid=f"uid-{user}"))


def a_request(token: str = "", size: int = 2, filter_: str = "") -> pb.ListAuditEventsRequest:
    return pb.ListAuditEventsRequest(page_size=size, page_token=token, filter=filter_)


def walk(rows: list[str], size: int) -> list[str]:
    seen: list[str] = []
    token = ""
    while True:
        page = PAGES.open(a_call(), a_request(token, size))
        after = page.after[0] if page.after else ""
        found, token = page.close([r for r in sorted(rows) if r > after][: page.limit], key=lambda r: r)
        seen += found
        if not token:
            return seen


def test_every_row_once() -> None:
    """Walking the pages shows every row once, whatever the size."""
    rows = [f"r{i:02}" for i in range(10)]
    assert all(walk(rows, size) == rows for size in (1, 3, 5, 9, 10, 11))


def test_stable_while_rows_come_and_go() -> None:
    """A row inserted before the token's place, or the last row deleted, neither doubles nor skips another."""
    rows = ["a", "c", "e", "g"]
    page = PAGES.open(a_call(), a_request())
    first, token = page.close(rows[:3], key=lambda r: r)
    after = PAGES.open(a_call(), a_request(token)).after
    assert first == ["a", "c"]
    assert after == ("c",)
    assert [r for r in ["a", "b", "e", "g"] if r > after[0]] == ["e", "g"]


def test_typed_keys_come_back_as_they_were() -> None:
    """Times, ids, numbers and texts survive the token."""
    key = (datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), uuid.uuid4(), 7, "x", None)
    page = PAGES.open(a_call(), a_request(), order=("a", "b", "c", "d", "e"))
    token = page.close([1, 2, 3], key=lambda _row: key)[1]
    assert PAGES.open(a_call(), a_request(token), order=("a", "b", "c", "d", "e")).after == key


def test_where_is_a_row_comparison() -> None:
    """The SQL starts behind the key, in either direction, with parameters only."""
    page = dataclasses.replace(PAGES.open(a_call(), a_request()), after=("x", 1))
    assert page.where(("t.a", "t.b"), first_parameter=4) == ("(t.a, t.b) > ($4, $5)", ["x", 1])
    assert page.where(("t.a", "t.b"), first_parameter=4, descending=True)[0] == "(t.a, t.b) < ($4, $5)"
    assert dataclasses.replace(page, after=None).where(("t.a",), first_parameter=1) == ("true", [])


def test_size_is_bounded() -> None:
    """0 means the default, and no page is larger than the greatest."""
    assert PAGES.open(a_call(), a_request(size=0)).size == 50
    assert PAGES.open(a_call(), a_request(size=10_000)).size == 500


def refused(token: str, call: Call | None = None, pages: Pages = PAGES, **request: Any) -> bool:
    with pytest.raises(Invalid) as caught:
        pages.open(call or a_call(), a_request(token, **request))
    return caught.value.violations[0].field == "page_token"


def test_a_token_is_bound() -> None:
    """It is refused for another caller, method, filter, order or key, when cut, changed or made up; a new page size is fine."""
    token = PAGES.open(a_call(), a_request()).close(["a", "b", "c"], key=lambda r: r)[1]
    assert PAGES.open(a_call(), a_request(token, size=9)).after == ("b",)
    assert refused(token, a_call("eve"))
    assert refused(token, a_call(method="GetAuditEvent"))
    assert refused(token, filter_="actor = x")
    assert refused(token, pages=Pages(b"o" * 32))
    with pytest.raises(Invalid):
        PAGES.open(a_call(), a_request(token), order=("time",))
    changed = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    assert all(refused(t) for t in (changed, token[:-3], "x", "🙂", "A" * 9000, "=", token + token))


def test_no_token_within_the_key_only_columns() -> None:
    """What cannot be a key is a programmer's mistake, told at once."""
    page = PAGES.open(a_call(), a_request(size=1))
    with pytest.raises(TypeError, match="float"):
        page.close([1.5, 2.5], key=lambda r: r)
