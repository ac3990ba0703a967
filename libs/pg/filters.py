r"""Filters: a subset of AIP-160 turned into a SQL condition. Values become parameters, never SQL text.

`field = value`, `!=`, `:` (text contains, list has; `*` for "is set"), and `<`, `<=`, `>`, `>=` on times and numbers,
joined by AND. Values are words or "quoted, with \" and \\". OR, NOT, brackets and unknown fields are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from libs.faults import Invalid

MAX_TERMS = 20
_TERM = re.compile(
    r"\s*(?P<field>[A-Za-z_][A-Za-z0-9_.]*)\s*(?P<op>!=|<=|>=|=|<|>|:)\s*"
    r'(?:"(?P<quoted>(?:[^"\\]|\\["\\])*)"|(?P<word>[^\s"()]+))(?=\s|$)'
)
_AND = re.compile(r"\s+AND(?=\s)")
_ORDER = ("<", "<=", ">", ">=")


@dataclass(frozen=True, slots=True)
class Column:
    """A field that can be filtered by.

    Attributes:
        sql: SQL expression; a literal of ours.
        kind: `text`, `texts` (an array), `time`, `int` or `bool`.
        values: the words allowed, when they are few.
    """

    sql: str
    kind: str = "text"
    values: tuple[str, ...] = ()


def parse(text: str, fields: Mapping[str, str | Column], *, first_parameter: int = 1) -> tuple[str, list[Any]]:
    """SQL condition and its arguments; `true` for an empty filter.

    Args:
        text: what the caller wrote.
        fields: what may be filtered by; a plain string is a text column.
        first_parameter: number of the first free `$n`.

    Raises:
        Invalid: names what is wrong with the field `filter`.
    """
    if "\0" in text:
        raise _invalid("holds a NUL character, which no stored text has")
    conditions: list[str] = []
    args: list[Any] = []
    for name, operator, value in _terms(text):
        field = fields.get(name)
        if field is None:
            raise _invalid(f"no such field {name!r}; known: {', '.join(sorted(fields))}")
        column = field if isinstance(field, Column) else Column(field)
        condition, argument = _condition(name, column, operator, value, f"${first_parameter + len(args)}")
        conditions.append(condition)
        args += argument
    return " and ".join(conditions) or "true", args


def _terms(text: str) -> Iterator[tuple[str, str, str]]:
    position, end = 0, len(text.rstrip())
    for count in range(MAX_TERMS + 1):
        if position == end:
            return
        if count == MAX_TERMS:
            raise _invalid(f"more than {MAX_TERMS} terms")
        if count:
            joined = _AND.match(text, position)
            if joined is None:
                raise _invalid(f"AND expected at {text[position:].strip()[:20]!r}; OR, NOT and brackets are not supported")
            position = joined.end()
        term = _TERM.match(text, position)
        if term is None:
            raise _invalid(f"`field = value` expected at {text[position:].strip()[:20]!r}; OR, NOT and brackets are not supported")
        value = term["word"] if term["quoted"] is None else re.sub(r"\\(.)", r"\1", term["quoted"])
        yield term["field"], term["op"], value
        position = term.end()


def _condition(name: str, column: Column, operator: str, value: str, parameter: str) -> tuple[str, list[Any]]:
    if column.values and value not in column.values and value != "*":
        raise _invalid(f"{name} is one of {', '.join(column.values)}, not {value!r}")
    if operator in _ORDER and column.kind not in ("time", "int"):
        raise _invalid(f"{operator} cannot be used with {name}")
    if operator == ":" and value == "*":
        empty = {"text": " <> ''", "texts": " <> '{}'"}.get(column.kind, " is not null")
        return f"({column.sql}){empty}", []
    if column.kind == "texts":
        negation = "not " if operator == "!=" else ""
        return f"{negation}({parameter}::text = any({column.sql}))", [value]
    if operator == ":" and column.kind == "text" and not column.values:
        return f"position(lower({parameter}::text) in lower({column.sql})) > 0", [value]
    sql_operator = {":": "=", "!=": "<>"}.get(operator, operator)
    sql_type, convert = _KINDS[column.kind]
    try:
        argument = convert(value)
    except (ValueError, OverflowError) as error:
        raise _invalid(f"{name}: {value!r} is not a {column.kind}") from error
    return f"({column.sql}) {sql_operator} {parameter}::{sql_type}", [argument]


def _time(value: str) -> datetime:
    time = datetime.fromisoformat(value)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _int(value: str) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError(value)
    return number


def _bool(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError(value)
    return value == "true"


_KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "text": ("text", str),
    "time": ("timestamptz", _time),
    "int": ("bigint", _int),
    "bool": ("boolean", _bool),
}


def _invalid(what: str) -> Invalid:
    return Invalid.one("filter", what)
