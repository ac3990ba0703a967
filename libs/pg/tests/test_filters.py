"""Filters become parameters and known columns, or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.faults import Invalid
from libs.pg.filters import Column, parse

FIELDS: dict[str, str | Column] = {
    "name": "t.name",
    "state": Column("t.state", values=("READY", "GONE")),
    "resource": Column("t.resources", "texts"),
    "time": Column("t.time", "time"),
    "size": Column("t.size", "int"),
    "on": Column("t.on", "bool"),
}


def test_terms_become_parameters_in_order() -> None:
    """Each value is a parameter, numbered from the first free one."""
    sql, args = parse('name = "a \\"b\\"" AND state != GONE AND size >= 7', FIELDS, first_parameter=3)
    assert sql == "(t.name) = $3::text and (t.state) <> $4::text and (t.size) >= $5::bigint"
    assert args == ['a "b"', "GONE", 7]


def test_has() -> None:
    """`:` finds a part of a text and an item of a list; `*` asks for presence and takes no parameter."""
    assert parse("name:users/dev", FIELDS)[1] == ["users/dev"]
    assert parse("resource:tenants/acme", FIELDS) == ("($1::text = any(t.resources))", ["tenants/acme"])
    assert parse("name:* AND on=true", FIELDS) == ("(t.name) <> '' and (t.on) = $1::boolean", [True])


def test_empty_is_everything() -> None:
    """No filter is no condition."""
    assert parse("  ", FIELDS) == ("true", [])


@pytest.mark.parametrize(
    "text",
    [
        "secret = x", "t.name = x", "name", "name =", "= x", "name = x OR name = y", "NOT name = x", "(name = x)", "name = x name = y",
        "state = OTHER", "name > x", "size = many", "size = 99999999999999999999", "time = yesterday", "on = 1", 'name = "open',
        "name = x; drop table t", "name = x' or '1'='1 AND", "name = \x00", " AND ".join(["name = x"] * 21), "name = x AND",
        'name="a"AND name="b"', "1=1", "name = x -- AND",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    """What is not in the subset is refused, naming the field `filter`."""
    with pytest.raises(Invalid) as caught:
        parse(text, FIELDS)
    assert caught.value.violations[0].field == "filter"


def test_unknown_field_is_named() -> None:
    """The refusal names the field and the known ones."""
    with pytest.raises(Invalid, match=r"'secret'.*known: name"):
        parse("secret = x", FIELDS)


@given(st.text(max_size=60), st.sampled_from(["=", "!=", ":"]))
def test_no_value_reaches_the_sql(value: str, operator: str) -> None:
    """Whatever is quoted ends up as an argument; the SQL text does not depend on it."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    if "\0" in value or (operator == ":" and value == "*"):
        return
    sql, args = parse(f'name {operator} "{quoted}"', FIELDS)
    assert args == [value]
    assert sql == parse(f'name {operator} "x"', FIELDS)[0]
