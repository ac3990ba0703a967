"""Lists against PostgreSQL: filters equal a reference evaluator's, pages walk every order without gap or double."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubegems.policy.v1 import policy_pb2
from kubegems.tenancy.v1 import tenant_service_pb2 as pb
from libs.faults import Invalid
from libs.pg import Database, Tx, lists
from libs.pg.filter_syntax import And, Node, Not, Or, Term
from libs.pg.filters import Column
from libs.pg.ordering import Part
from libs.pg.paging import Pages
from libs.rpc.call import Call, Caller, Kind, Method

PAGES = Pages(b"k" * 32)
START = datetime(2026, 1, 1, tzinfo=UTC)
KIND = {"name": "text", "note": "text", "labels": "texts", "size": "int", "on": "bool", "made": "time", "used": "time", "state": "enum"}
UNSET = frozenset({"note", "used"})  # fields that can be NULL
WORDS = ["", "a", "B", "ab", "a b", "é", "*", "x'--", '"', "\\", "%", "_", "AND", "Ab", "日本", "\U0001f642"]
STATES = ("READY", "GONE")
SOURCE = lists.Source(
    select="SELECT name, note, labels, size, on_, made, used, state FROM shop",
    tally="SELECT count(*) FROM shop",
    filters={
        "name": "name",
        "note": Column("note", nullable=True),
        "labels": Column("labels", "texts"),
        "size": Column("size", "int"),
        "on": Column("on_", "bool"),
        "made": Column("made", "time"),
        "used": Column("used", "time", nullable=True),
        "state": Column("state", values=STATES),
    },
    orders={
        "name": (Part('name COLLATE "C"', "name"),),
        "note": (Part('note COLLATE "C"', "note", nullable=True),),
        "size": (Part("size", "size", "int"),),
        "on": (Part("on_", "on_", "bool"),),
        "used": (Part("used", "used", "time", nullable=True),),
        "state": (Part('state COLLATE "C"', "state"), Part("size", "size", "int")),
    },
    key=(Part('name COLLATE "C"', "name"), Part("size", "size", "int")),
    default="name",
)
Row = dict[str, Any]


def make_rows() -> list[Row]:
    """Forty rows with many equal values, the same every time."""
    chance = random.Random(4)
    rows: dict[tuple[str, int], Row] = {}
    while len(rows) < 40:
        row: Row = {
            "name": chance.choice(WORDS), "note": chance.choice([None, *WORDS]), "labels": chance.sample(WORDS, chance.randrange(3)),
            "size": chance.randrange(-2, 4), "on_": chance.random() < 0.5, "made": START + timedelta(hours=chance.randrange(4)),
            "used": chance.choice([None, START, START + timedelta(hours=1)]), "state": chance.choice(STATES),
        }  # fmt: skip
        rows.setdefault((row["name"], row["size"]), row)
    return list(rows.values())


ROWS = make_rows()


@pytest.fixture(scope="module")
async def shop(pg: Database) -> Database:
    """The rows in a table."""
    async with pg.transaction() as tx:
        await tx.execute(
            "CREATE TABLE shop (name text NOT NULL, note text, labels text[] NOT NULL, size bigint NOT NULL, on_ bool NOT NULL,"
            " made timestamptz NOT NULL, used timestamptz, state text NOT NULL)"
        )
        await tx.many("INSERT INTO shop VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", [tuple(row.values()) for row in ROWS])
    return pg


# --- the reference evaluator: what a filter means, said in Python -------------------------------------------------------


def holds(node: Node, row: Row) -> bool:
    match node:
        case And(of):
            return all(holds(part, row) for part in of)
        case Or(of):
            return any(holds(part, row) for part in of)
        case Not(of):
            return not holds(of, row)
        case Term(field, operator, value, quoted):
            given_ = row["on_" if field == "on" else field]
            if operator == ":" and value == "*" and not quoted:
                return given_ is not None if KIND[field] in ("bool", "int", "time") else bool(given_)
            return compare(KIND[field], operator, value, given_)


def compare(kind: str, operator: str, text: str, given_: Any) -> bool:
    if kind == "texts":
        return (text in given_) != (operator == "!=")
    if given_ is None:
        return operator == "!="
    value = typed(kind, text)
    if operator == ":" and kind == "text":
        return text.lower() in given_.lower()
    answers = {
        "=": given_ == value, ":": given_ == value, "!=": given_ != value,
        "<": given_ < value, "<=": given_ <= value, ">": given_ > value, ">=": given_ >= value,
    }  # fmt: skip
    return bool(answers[operator])


def typed(kind: str, text: str) -> Any:
    match kind:
        case "int":
            return int(text)
        case "bool":
            return text == "true"
        case "time":
            return datetime.fromisoformat(text)
        case _:
            return text


# --- generators ---------------------------------------------------------------------------------------------------------

VALUES = {
    "text": st.sampled_from(WORDS) | st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=3),
    "texts": st.sampled_from(WORDS),
    "int": st.integers(-3, 4).map(str) | st.integers(-(2**63), 2**63 - 1).map(str),
    "bool": st.sampled_from(["true", "false"]),
    "time": st.integers(-1, 4).map(lambda hours: (START + timedelta(hours=hours)).isoformat()),
    "enum": st.sampled_from(STATES),
}
OPERATORS = {
    "text": ["=", "!=", ":", "<", "<=", ">", ">="], "int": ["=", "!=", ":", "<", "<=", ">", ">="],
    "time": ["=", "!=", ":", "<", "<=", ">", ">="], "texts": ["=", "!=", ":"], "bool": ["=", "!=", ":"], "enum": ["=", "!=", ":"],
}  # fmt: skip


@st.composite
def terms(draw: Any) -> Term:
    field = draw(st.sampled_from(sorted(KIND)))
    if draw(st.integers(0, 7)) == 0:
        return Term(field, ":", "*", quoted=False)
    return Term(field, draw(st.sampled_from(OPERATORS[KIND[field]])), draw(VALUES[KIND[field]]), quoted=True)


def joined(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(inner, min_size=2, max_size=3).map(tuple)
    return several.map(And) | several.map(Or) | inner.map(Not)


TREES: st.SearchStrategy[Node] = st.recursive(terms(), joined, max_leaves=8)


def written(node: Node) -> str:
    match node:
        case Term(field, operator, value, quoted):
            return f"{field} {operator} " + ('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if quoted else value)
        case Not(of):
            return f"NOT ({written(of)})"
        case And(of):
            return " AND ".join(f"({written(part)})" for part in of)
        case Or(of):
            return " OR ".join(f"({written(part)})" for part in of)


FIELDS_TO_ORDER = {"name": "name", "note": "note", "size": "size", "on": "on_", "used": "used", "state": "state"}
ORDERS = st.lists(
    st.tuples(st.sampled_from(sorted(FIELDS_TO_ORDER)), st.booleans()), max_size=4, unique_by=lambda field: field[0]
).map(lambda fields: [(name, bool(falls)) for name, falls in fields])  # fmt: skip


def reference_order(fields: list[tuple[str, bool]]) -> list[Row]:
    steps: dict[str, bool] = {}
    for name, falls in fields or [("name", False)]:
        for part in ("state", "size") if name == "state" else (FIELDS_TO_ORDER[name],):
            steps.setdefault(part, falls)
    for part in ("name", "size"):
        steps.setdefault(part, fields[-1][1] if fields else False)

    def against(a: Row, b: Row) -> int:
        for part, falls in steps.items():
            left, right = (a[part] is not None, a[part]), (b[part] is not None, b[part])
            if left != right:
                smaller = left[0] < right[0] if left[0] != right[0] else left[1] < right[1]
                return -1 if smaller != falls else 1
        return 0

    return sorted(ROWS, key=functools.cmp_to_key(against))


# --- the tests ----------------------------------------------------------------------------------------------------------


def a_call(user: str = "dev") -> Call:
    descriptor = pb.DESCRIPTOR.services_by_name["TenantService"].methods_by_name["ListTenants"]
    handler: Any = None
    method = Method(descriptor, policy_pb2.Rule(), pb.ListTenantsRequest, pb.ListTenantsResponse, handler)
    return Call(method=method, caller=Caller(Kind.USER, user, uid=f"uid-{user}"))


async def ask(tx: Tx, **request: Any) -> lists.Listed:
    return await lists.read(tx, PAGES, a_call(), pb.ListTenantsRequest(**request), source=SOURCE)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(tree=TREES)
async def test_a_filter_finds_what_the_reference_finds(shop: Database, tree: Node) -> None:
    """Any tree of terms, in SQL and in Python, finds the same rows; the tally agrees."""
    async with shop.transaction(readonly=True) as tx:
        found = await ask(tx, filter=written(tree), page_size=500)
    assert [(r["name"], r["size"]) for r in found.rows] == [(r["name"], r["size"]) for r in reference_order([]) if holds(tree, r)]
    assert found.total == len(found.rows)


@FUZZ
@given(fields=ORDERS, size=st.integers(1, 45), tree=st.none() | TREES)
async def test_pages_walk_any_order(shop: Database, fields: list[tuple[str, bool]], size: int, tree: Node | None) -> None:
    """Mixed directions, unset values and filters: every row once, in the reference's order."""
    request = {"order_by": ", ".join(name + (" desc" if falls else "") for name, falls in fields), "page_size": size}
    if tree is not None:
        request["filter"] = written(tree)
    seen: list[tuple[str, int]] = []
    token = ""
    async with shop.transaction(readonly=True) as tx:
        for _ in range(len(ROWS) + 1):
            found = await ask(tx, page_token=token, **request)
            seen += [(r["name"], r["size"]) for r in found.rows]
            token = found.token
            if not token:
                break
    assert seen == [(r["name"], r["size"]) for r in reference_order(fields) if tree is None or holds(tree, r)]


@FUZZ
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=60), order=st.text(max_size=20))
async def test_any_text_is_answered_or_refused(shop: Database, text: str, order: str) -> None:
    """Whatever is sent, the database is asked something valid or nothing at all."""
    async with shop.transaction(readonly=True) as tx:
        for request in ({"filter": text}, {"order_by": order}, {"filter": f"name = x OR note > {text}"}):
            with contextlib.suppress(Invalid):
                await ask(tx, **request)


def injections() -> Iterator[dict[str, str]]:
    for tail in ("'; drop table shop; --", "' or '1'='1", "\\'; drop table shop; --", "$1; drop table shop", "x' union select 1 --", "%"):
        quoted = tail.replace("\\", "\\\\").replace('"', '\\"')
        for field in ("name", "note", "labels"):
            yield {"filter": f'{field} = "{quoted}"'}
            yield {"filter": f'{field}:"{quoted}"'}
            yield {"filter": f"{field} = {tail}"}
        yield {"order_by": f"name {tail}"}
        yield {"order_by": tail}
        yield {"filter": tail}


async def test_the_table_stands(shop: Database) -> None:
    """Injections find nothing that their text is not in, and change nothing."""
    async with shop.transaction() as tx:
        for request in injections():
            try:
                found = await ask(tx, **request, page_size=500)
            except Invalid:
                continue
            assert len(found.rows) < 20, request
        assert await tx.value("SELECT count(*) FROM shop") == len(ROWS)


async def test_a_token_is_of_its_query_order_and_caller(shop: Database) -> None:
    """Another filter, order, parent or caller does not go on with it; another page size does."""
    async with shop.transaction(readonly=True) as tx:
        token = (await ask(tx, order_by="size desc", page_size=3)).token
        assert len((await ask(tx, order_by="size desc", page_size=5, page_token=token)).rows) == 5
        for other in ({}, {"order_by": "size"}, {"order_by": "size desc", "filter": "size > 0"}):
            with pytest.raises(Invalid, match="page_token"):
                await ask(tx, page_token=token, **other)
        request = pb.ListTenantsRequest(order_by="size desc", page_token=token)
        with pytest.raises(Invalid, match="page_token"):
            await lists.read(tx, PAGES, a_call("eve"), request, source=SOURCE)


async def test_rows_that_come_and_go_shift_nothing(shop: Database) -> None:
    """A row put before the page's end, or taken away at it, neither doubles nor hides another."""
    async with shop.transaction() as tx:
        first = await ask(tx, order_by="state desc, name", page_size=7)
        async with tx.savepoint():
            last = first.rows[-1]
            await tx.execute("DELETE FROM shop WHERE name = $1 AND size = $2", last["name"], last["size"])
            await tx.execute("INSERT INTO shop VALUES ('', null, '{}', 99, true, now(), null, 'READY')")
        second = await ask(tx, order_by="state desc, name", page_size=500, page_token=first.token)
        assert [(r["name"], r["size"]) for r in second.rows if r["size"] != 99] == [
            (r["name"], r["size"]) for r in reference_order([("state", True), ("name", False)])[7:]
        ]
        await tx.execute("DELETE FROM shop WHERE size = 99")
        await tx.many("INSERT INTO shop VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", [tuple(last.values())])
