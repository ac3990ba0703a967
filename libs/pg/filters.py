"""Filters as SQL conditions: declared columns only, values as parameters, never SQL text.

The syntax is that of filter_syntax. What each operator means: `=`, `!=` exactly; `<` and the like on times, numbers and
texts (by code point); `:` finds a part of a text, whatever its case, or an item of a list, and `field:*` what is set.
A condition is true or false, never unknown: what is not set equals nothing, differs from everything and has no order,
so that NOT always gives the rest. Fields that are not declared and values of another type are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from libs.pg.filter_syntax import And, Node, Not, Or, Term, invalid
from libs.pg.filter_syntax import parse as parse_text

_ORDER = ("<", "<=", ">", ">=")
_NAME = re.compile(r"[a-z_][a-z_0-9.]*")
_INT = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Column:
    """A field that can be filtered by.

    Attributes:
        sql: SQL expression; a literal of ours.
        kind: `text`, `texts` (an array), `time`, `int`, `bool` or `uuid`.
        values: the words allowed, when they are few.
        nullable: whether it can be NULL.
    """

    sql: str
    kind: str = "text"
    values: tuple[str, ...] = ()
    nullable: bool = False

    @property
    def expression(self) -> str:
        """The SQL as one operand, whatever stands around it."""
        return self.sql if _NAME.fullmatch(self.sql) else f"({self.sql})"


Fields = Mapping[str, str | Column]


def parse(text: str, fields: Fields, *, first_parameter: int = 1) -> tuple[str, list[Any]]:
    """SQL condition and its arguments; `true` for an empty filter.

    Args:
        text: what the caller wrote.
        fields: what may be filtered by; a plain string is a text column.
        first_parameter: number of the first free `$n`.

    Raises:
        Invalid: names what is wrong with the field `filter`.
    """
    tree = parse_text(text)
    writer = _Writer(fields, first_parameter)
    return ("true" if tree is None else writer.sql(tree)), writer.args


class _Writer:
    """Writes a tree as SQL and gathers the arguments."""

    def __init__(self, fields: Fields, first_parameter: int) -> None:
        self._fields = fields
        self._first = first_parameter
        self.args: list[Any] = []

    def sql(self, node: Node) -> str:
        match node:
            case And(of):
                return "(" + " and ".join(self.sql(part) for part in of) + ")"
            case Or(of):
                return "(" + " or ".join(self.sql(part) for part in of) + ")"
            case Not(of):
                return f"(not {self.sql(of)})"
            case Term():
                return f"({self._term(node)})"

    def _term(self, term: Term) -> str:
        field = self._fields.get(term.field)
        if field is None:
            raise invalid(f"there is no field {term.field!r}; known: {', '.join(sorted(self._fields)) or 'none'}")
        column = field if isinstance(field, Column) else Column(field)
        if term.operator == ":" and term.value == "*" and not term.quoted:
            return _is_set(column)
        if term.operator in _ORDER and (column.kind in ("texts", "bool", "uuid") or column.values):
            raise invalid(f"{term.operator} cannot be used with {term.field}")
        if column.kind == "texts":
            return self._has(term, column)
        return self._compare(term, column)

    def _has(self, term: Term, column: Column) -> str:
        """Whether a list has an item; `@>` is what an index serves."""
        found = f"{column.expression} @> array[{self._parameter(term.value, 'text')}]"
        if column.nullable:
            found = f"coalesce({found}, false)"
        return f"not ({found})" if term.operator == "!=" else found

    def _compare(self, term: Term, column: Column) -> str:
        if term.operator == ":" and column.kind == "text" and not column.values:
            found = f"position(lower({self._parameter(term.value, 'text')}) in lower({column.expression})) > 0"
            return f"{column.expression} is not null and {found}" if column.nullable else found
        sql_type, _ = KINDS[column.kind]
        parameter = self._parameter(_value(term, column), sql_type)
        if term.operator == "!=":
            return f"{column.expression} is distinct from {parameter}" if column.nullable else f"{column.expression} <> {parameter}"
        operator = "=" if term.operator == ":" else term.operator
        collate = ' collate "C"' if operator in _ORDER and column.kind == "text" else ""
        found = f"{column.expression} {operator} {parameter}{collate}"
        return f"{column.expression} is not null and {found}" if column.nullable else found

    def _parameter(self, value: Any, sql_type: str) -> str:
        self.args.append(value)
        return f"${self._first + len(self.args) - 1}::{sql_type}"


def _is_set(column: Column) -> str:
    match column.kind:
        case "text":
            return f"coalesce({column.expression}, '') <> ''" if column.nullable else f"{column.expression} <> ''"
        case "texts":
            return f"coalesce(cardinality({column.expression}), 0) > 0"
        case _:
            return f"{column.expression} is not null"


def _value(term: Term, column: Column) -> Any:
    if column.values and term.value not in column.values:
        raise invalid(f"{term.field} is one of {', '.join(column.values)}, not {term.value!r}")
    _, convert = KINDS[column.kind]
    try:
        return convert(term.value)
    except (ValueError, OverflowError) as error:
        raise invalid(f"{term.field} takes {_MEANT[column.kind]}, not {term.value!r}") from error


def _time(value: str) -> datetime:
    time = datetime.fromisoformat(value)
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)


def _int(value: str) -> int:
    if not _INT.fullmatch(value) or not -(2**63) <= (number := int(value)) < 2**63:
        raise ValueError(value)
    return number


def _bool(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(value)
    return value == "true"


# kind → SQL type, and how the caller's text becomes a value of it
KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "text": ("text", str),
    "time": ("timestamptz", _time),
    "int": ("bigint", _int),
    "bool": ("boolean", _bool),
    "uuid": ("uuid", UUID),
}
_MEANT = {
    "text": "text", "time": "a time such as 2026-01-31T12:00:00Z", "int": "a whole number", "bool": "true or false", "uuid": "a uid",
}  # fmt: skip
