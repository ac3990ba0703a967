"""Filters become parameters and declared columns, or are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.faults import Invalid
from libs.pg.filter_syntax import MAX_DEPTH, MAX_LENGTH, MAX_TERMS, And, Not, Or, Term
from libs.pg.filter_syntax import parse as tree
from libs.pg.filters import Column, Fields, parse

FIELDS: Fields = {
    "name": "t.name",
    "state": Column("t.state", values=("READY", "GONE")),
    "resource": Column("t.resources", "texts"),
    "time": Column("t.time", "time"),
    "used": Column("t.used", "time", nullable=True),
    "size": Column("t.size", "int"),
    "on": Column("t.a or t.b", "bool"),
    "uid": Column("t.uid", "uuid"),
}


def test_terms_become_parameters_in_order() -> None:
    """Each value is a parameter, numbered from the first free one."""
    sql, args = parse('name = "a \\"b\\"" AND state != GONE AND size >= 7', FIELDS, first_parameter=3)
    assert sql == "((t.name = $3::text) and (t.state <> $4::text) and (t.size >= $5::bigint))"
    assert args == ['a "b"', "GONE", 7]


def test_has() -> None:
    """`:` finds a part of a text and an item of a list; `*` asks for presence and takes no parameter, a quoted one is a star."""
    assert parse("name:users/dev", FIELDS)[1] == ["users/dev"]
    assert parse("resource:tenants/acme", FIELDS) == ("(t.resources @> array[$1::text])", ["tenants/acme"])
    assert parse("name:* AND on=true", FIELDS) == ("((t.name <> '') and ((t.a or t.b) = $1::boolean))", [True])
    assert parse('name:"*"', FIELDS)[1] == ["*"]


def test_empty_is_everything() -> None:
    """No filter is no condition."""
    assert parse("  ", FIELDS) == ("true", [])


def test_or_binds_tighter_than_and() -> None:
    """As AIP-160 has it; parentheses say otherwise; NOT turns the one thing that follows."""
    a, b, c = (Term(name, "=", "1", quoted=False) for name in "abc")
    assert tree("a=1 AND b=1 OR c=1") == And((a, Or((b, c))))
    assert tree("(a=1 AND b=1) OR c=1") == Or((And((a, b)), c))
    assert tree("NOT a=1 OR b=1") == Or((Not(a), b))
    assert tree("NOT (a=1 OR b=1)AND(c=1)") == And((Not(Or((a, b))), c))


def test_quoting() -> None:
    """Both quotes, with a backslash before quotes and itself; within them anything, keywords too."""
    assert [t.value for t in [tree(x) for x in ['a="(b) AND \\"c\\""', "a='it\\'s'", 'a="AND"', "a='x\\\\y'", "a=-5", "a=b:c/d.e"]]
            if isinstance(t, Term)] == ['(b) AND "c"', "it's", "AND", "x\\y", "-5", "b:c/d.e"]  # fmt: skip


def test_unset_is_never_unknown() -> None:
    """What can be NULL equals nothing and differs from everything, so that NOT gives the rest."""
    assert parse("used = 2026-01-01", FIELDS)[0] == "(t.used is not null and t.used = $1::timestamptz)"
    assert parse("used != 2026-01-01", FIELDS)[0] == "(t.used is distinct from $1::timestamptz)"
    assert parse("NOT used:*", FIELDS)[0] == "(not (t.used is not null))"


WRONG = [
    "secret = x", "t.name = x", "name", "name =", "= x", "NOT", "NOT NOT name = x", "(name = x", "name = x)", "()", "name = x name = y",
    "-name = x", "name = x OR", "name = x or name = y", "AND = x", "name = AND", "name = (x)", "name == x", "name = a=b", "name ::x",
    "state = OTHER", "state > GONE", "on > true", "resource > a", "size = many", "size = 1_000", "size = \u0661", "size = 1.5",
    "size = 99999999999999999999", "size = 9223372036854775808", "time = yesterday", "time = 0001-01-01T00:00:00+14:00", "on = 1",
    "uid = x", 'name = "open', "name = 'open", 'name = "a\\', 'name = "a\\n"', "name = \x00", 'name = "\x00"', "name = x AND",
    'name="a"AND name="b"', "name = x,y = z", "name(x)", "name = x // AND", "has(name)", "name.first = x",
]  # fmt: skip
INJECTED = [
    "name = x; drop table t", "name = x' or '1'='1", "name = x' or '1'='1 AND", "1=1", "name = x -- AND", "name = $1 OR 1=1",
    "name = x/**/OR/**/1=1", "t.name; = x", "name) or (true = true", "name = x) or (1=1", "name:x' union select 1 --",
    '"name" = x', "name' = x", "name\x00 = x", "pg_sleep(10) = 1", "name = ''''", "NAME; = 1", "name = x\u2028; drop table t",
    "state = READY'; drop table t; --", "size = 1; select 1", "size = 1::text", "time = now()", "on = true or true", "uid = null",
    "name is null", "name = null OR true", "name in (select 1)", "name ~ '.*'", "name <=> x", "name != x' --", "\uff4eame = x",
]  # fmt: skip


@pytest.mark.parametrize("text", [*WRONG, *INJECTED])
def test_refused(text: str) -> None:
    """What is not in the subset is refused, naming the field `filter`."""
    with pytest.raises(Invalid) as caught:
        parse(text, FIELDS)
    assert caught.value.violations[0].field == "filter"


@pytest.mark.parametrize("text", INJECTED)
def test_quoted_it_is_but_a_value(text: str) -> None:
    """The same texts within quotes are looked for like any other, and the SQL does not change."""
    if "\x00" in text:
        return
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    assert parse(f'name = "{quoted}"', FIELDS) == ("(t.name = $1::text)", [text])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("secret = x", "there is no field 'secret'; known: name, on"),
        ("size = many", "size takes a whole number, not 'many'"),
        ("state = OTHER", "state is one of READY, GONE, not 'OTHER'"),
        ("on > true", "> cannot be used with on"),
        ("name = a OR (name = b", r"`\)`, AND or OR expected at character 22, where it ends"),
        ("name = a & name = b", "AND or OR expected at character 10, not '& name = b'"),
    ],
)
def test_it_says_what_is_wrong(text: str, said: str) -> None:
    """The refusal names the field, what it takes, and where the text goes wrong."""
    with pytest.raises(Invalid, match=said):
        parse(text, FIELDS)


def test_bounds() -> None:
    """The longest, deepest and most are read, one more is refused."""

    def deep(depth: int) -> str:
        return "(" * depth + "name = x" + ")" * depth

    def many(terms: int) -> str:
        return " AND ".join(["size = 1"] * terms)

    assert parse(deep(MAX_DEPTH), FIELDS)[1] == ["x"]
    assert len(parse(many(MAX_TERMS), FIELDS)[1]) == MAX_TERMS
    assert parse("name = " + "x" * (MAX_LENGTH - 7), FIELDS)[1] == ["x" * (MAX_LENGTH - 7)]
    for text in (deep(MAX_DEPTH + 1), many(MAX_TERMS + 1), "name = " + "x" * (MAX_LENGTH - 6), "(" * MAX_LENGTH, "NOT(" * 500):
        with pytest.raises(Invalid):
            parse(text, FIELDS)


@given(st.text(max_size=60).filter(lambda v: "\0" not in v), st.sampled_from(["=", "!=", ":", "<", ">="]))
def test_no_value_reaches_the_sql(value: str, operator: str) -> None:
    """Whatever is quoted ends up as an argument; the SQL text does not depend on it."""
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    sql, args = parse(f'name {operator} "{quoted}"', FIELDS)
    assert args == [value]
    assert sql == parse(f'name {operator} "x"', FIELDS)[0]


@given(st.text(alphabet="abnmeszi=!<>:()*\"'\\ \t-ANDORT1.", max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text brings the parser down, and what it lets through holds only its own words."""
    try:
        sql, args = parse(text, FIELDS)
    except Invalid:
        return
    assert sql.count("$") == len(args)
