"""Orders are declared fields, complete and refused by name otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.faults import Invalid
from libs.pg.ordering import MAX_LENGTH, Ordering, Part, parse

NAME, STATE, USED = Part("t.name", "name"), Part("t.state", "state"), Part("t.used", "used", "time", nullable=True)
ORDERS = {"name": (NAME,), "state": (STATE,), "use_time": (USED,), "place": (Part("t.a", "a"), Part("t.b", "b"))}


def order(text: str) -> Ordering:
    return parse(text, ORDERS, default="state desc", key=(NAME,))


def test_fields_and_directions() -> None:
    """Several fields, blanks anywhere, ` asc` too; the key follows in the last direction unless it is named."""
    assert order("").sql == "t.state DESC, t.name DESC"
    assert order(" state ").sql == "t.state, t.name"
    assert order("state  desc ,name asc").sql == "t.state DESC, t.name"
    assert order("name desc, state").sql == "t.name DESC, t.state"
    assert order("place desc").sql == "t.a DESC, t.b DESC, t.name DESC"
    assert order("state desc,name").names == ["state desc", "name"]


def test_unset_is_the_smallest() -> None:
    """It comes first when rising and last when falling, and pages go on there."""
    assert order("use_time").sql == "t.used ASC NULLS FIRST, t.name"
    assert order("use_time desc").sql == "t.used DESC NULLS LAST, t.name DESC"
    assert order("use_time").behind((None, "x"), first_parameter=1)[0].startswith("(($1::timestamptz is null and t.used is not null) or (")


def test_where_the_next_page_begins() -> None:
    """One direction is a row comparison, mixed ones are taken apart; values are parameters."""
    assert order("state").behind(("a", "b"), first_parameter=4) == ("(t.state, t.name) > ($4::text, $5::text)", ["a", "b"])
    assert order("state desc").behind(("a", "b"), first_parameter=1)[0] == "(t.state, t.name) < ($1::text, $2::text)"
    mixed = "(t.state < $1::text or (t.state = $1::text and t.name > $2::text))"
    assert order("state desc, name").behind(("a", "b"), first_parameter=1)[0] == mixed
    assert order("state").behind(None, first_parameter=1) == ("true", [])


@pytest.mark.parametrize(
    "text",
    [
        "size", "name, name", "name desc, name", "name down", "name desc desc", ",", "name,", ",name", "desc", "name DESC", "-name",
        "t.name", "name; drop table t", "name desc; --", "1", "name,(select 1)", "name nulls first", "x" * (MAX_LENGTH + 1), "\0",
        'name collate "C"', "name\x00", "random()",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    """What is not declared is refused, naming the field `order_by` and what is known."""
    with pytest.raises(Invalid, match="known: name, place, state, use_time") as caught:
        order(text)
    assert caught.value.violations[0].field == "order_by"


def test_not_too_many() -> None:
    """There is a most of fields."""
    many = {f"f{i}": (Part(f"t.f{i}", f"f{i}"),) for i in range(6)}
    with pytest.raises(Invalid, match="more than 5"):
        parse(", ".join(many), many, default="f0", key=())


@given(st.text(alphabet="nameusti_dc, ;.\"'()-", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Only declared expressions reach the SQL."""
    try:
        found = order(text)
    except Invalid:
        return
    assert {part.sql for part, _ in found.steps} <= {"t.name", "t.state", "t.used", "t.a", "t.b"}
