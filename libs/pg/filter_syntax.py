r"""The grammar of filters, a subset of AIP-160: text in, tree out; knows no SQL.

`field op value` with op one of `=`, `!=`, `<`, `<=`, `>`, `>=`, `:`; joined by AND and OR, turned by NOT, grouped by
parentheses. As AIP-160 has it, OR binds tighter than AND: `a = 1 AND b = 2 OR c = 3` is `a = 1 AND (b = 2 OR c = 3)`.
A value is a word, or quoted by `"` or `'` with `\` before quotes and `\`. Words alone, `-`, `.` traversal into maps,
functions and terms joined by mere blanks are refused; so is what is too long or too deep. Errors say what and where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.faults import Invalid

MAX_LENGTH = 2048  # characters
MAX_TERMS = 50
MAX_DEPTH = 10  # parentheses within parentheses
_KEYWORDS = frozenset({"AND", "OR", "NOT"})
_BLANK = re.compile(r"\s*")
_NOT = re.compile(r"NOT(?=[\s(])")
_JOIN = re.compile(r"\s*(?<=[\s)])(AND|OR)(?=[\s(])")
_TERM = re.compile(
    r"(?P<field>[A-Za-z_][A-Za-z0-9_.]*)\s*(?P<operator>!=|<=|>=|=|<|>|:)\s*"
    r"""(?:"(?P<double>(?:[^"\\]|\\["'\\])*)"|'(?P<single>(?:[^'\\]|\\["'\\])*)'|(?P<word>(?![:])[^\s"'()=<>!]+))(?=[\s)]|$)"""
)


@dataclass(frozen=True, slots=True)
class Term:
    """`field operator value`; `quoted` tells `"*"`, a star, from `*`, anything."""

    field: str
    operator: str
    value: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    of: Node


@dataclass(frozen=True, slots=True)
class And:
    """All of at least two."""

    of: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of at least two."""

    of: tuple[Node, ...]


Node = Term | Not | And | Or


def parse(text: str) -> Node | None:
    """The tree of a filter; None for an empty one. Invalid names the field `filter`."""
    if len(text) > MAX_LENGTH:
        raise invalid(f"is {len(text)} characters long, at most {MAX_LENGTH} are read")
    if "\0" in text:
        raise invalid("holds a NUL character, which no stored text has")
    reader = _Reader(text)
    if reader.at_end():
        return None
    found = reader.expression(0)
    if not reader.at_end():
        raise reader.expected("AND or OR")
    return found


def invalid(what: str) -> Invalid:
    """The fault of a filter."""
    return Invalid.one("filter", what)


class _Reader:
    """Reads by recursive descent; how deep is bounded."""

    def __init__(self, text: str) -> None:
        self._text = text.rstrip()
        self._at = 0
        self._terms = 0

    def at_end(self) -> bool:
        self._take(_BLANK)
        return self._at == len(self._text)

    def expected(self, what: str) -> Invalid:
        shown = self._text[self._at :].strip()[:20]
        return invalid(f"{what} expected at character {self._at + 1}" + (f", not {shown!r}" if shown else ", where it ends"))

    def expression(self, depth: int) -> Node:
        """`factor {AND factor}`."""
        found = [self._factor(depth)]
        while self._joined("AND"):
            found.append(self._factor(depth))
        return found[0] if len(found) == 1 else And(tuple(found))

    def _factor(self, depth: int) -> Node:
        """`item {OR item}`."""
        found = [self._item(depth)]
        while self._joined("OR"):
            found.append(self._item(depth))
        return found[0] if len(found) == 1 else Or(tuple(found))

    def _item(self, depth: int) -> Node:
        self._take(_BLANK)
        return Not(self._simple(depth)) if self._take(_NOT) else self._simple(depth)

    def _simple(self, depth: int) -> Node:
        self._take(_BLANK)
        if not self._text.startswith("(", self._at):
            return self._term()
        if depth == MAX_DEPTH:
            raise invalid(f"has more than {MAX_DEPTH} parentheses within each other")
        self._at += 1
        inner = self.expression(depth + 1)
        self._take(_BLANK)
        if not self._text.startswith(")", self._at):
            raise self.expected("`)`, AND or OR")
        self._at += 1
        return inner

    def _term(self) -> Term:
        start = self._at
        found = self._take(_TERM)
        if found is None or found["field"] in _KEYWORDS or found["word"] in _KEYWORDS:
            self._at = start
            raise self.expected("`field = value`")
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise invalid(f"has more than {MAX_TERMS} terms")
        quoted = found["double"] if found["double"] is not None else found["single"]
        value = found["word"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        return Term(found["field"], found["operator"], value, quoted is not None)

    def _joined(self, word: str) -> bool:
        start = self._at
        found = self._take(_JOIN)
        if found is not None and found[1] == word:
            return True
        self._at = start
        return False

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found
