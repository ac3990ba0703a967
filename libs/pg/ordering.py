"""Orders of lists: `order_by` as AIP-132 has it, over declared fields, and where the next page begins.

`name`, `create_time desc`, `state, name desc`: fields joined by commas, each with an optional ` desc` (` asc` is taken
too). Each list names a key that no two rows share; what the caller left out of it follows by itself, so that pages
neither skip nor repeat. What is not set sorts as the smallest. Undeclared or repeated fields are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from libs.faults import Invalid
from libs.pg.filters import KINDS

MAX_LENGTH = 256  # characters
MAX_FIELDS = 5
_WORDS = 2  # a field and its direction


@dataclass(frozen=True, slots=True)
class Part:
    """One SQL expression that rows are ordered by.

    Attributes:
        sql: the expression; a literal of ours.
        row: what the row calls its value.
        kind: `text`, `time`, `int`, `bool` or `uuid`.
        nullable: whether it can be NULL.
    """

    sql: str
    row: str
    kind: str = "text"
    nullable: bool = False


Orders = Mapping[str, Sequence[Part]]  # a field of the API → what stands for it


@dataclass(frozen=True, slots=True)
class Ordering:
    """Parts, first the most important, each with whether it falls; unique together."""

    steps: tuple[tuple[Part, bool], ...]

    @property
    def names(self) -> list[str]:
        """What a token is bound to."""
        return [part.row + (" desc" if falls else "") for part, falls in self.steps]

    @property
    def sql(self) -> str:
        """What stands behind ORDER BY."""
        return ", ".join(_order(part, falls=falls) for part, falls in self.steps)

    def key(self, row: Any) -> tuple[Any, ...]:
        """Where a row stands in the order."""
        return tuple(row[part.row] for part, _ in self.steps)

    def behind(self, after: Sequence[Any] | None, *, first_parameter: int) -> tuple[str, list[Any]]:
        """SQL condition and arguments for the rows behind a key; `true` without one.

        Parts that all run one way and are never NULL are compared as a row, for which an index serves. Otherwise it is:
        behind in the first part, or equal there and behind in the second, and so on.
        """
        if after is None:
            return "true", []
        numbers = [f"${first_parameter + i}::{KINDS[part.kind][0]}" for i, (part, _) in enumerate(self.steps)]
        if len({falls for _, falls in self.steps}) == 1 and not any(part.nullable for part, _ in self.steps):
            columns = ", ".join(part.sql for part, _ in self.steps)
            return f"({columns}) {'<' if self.steps[0][1] else '>'} ({', '.join(numbers)})", list(after)
        found = ""
        for (part, falls), value, number in reversed(list(zip(self.steps, after, numbers, strict=True))):
            further = _further(part, value, number, falls=falls)
            found = f"({further} or ({_same(part, number)} and {found}))" if found else further
        return found, list(after)


def parse(text: str, orders: Orders, *, default: str, key: Sequence[Part]) -> Ordering:
    """The order that a caller asks for.

    Args:
        text: what the caller wrote; empty for the default.
        orders: the fields that there are.
        default: an `order_by` of ours.
        key: parts that are unique together; those not named by the caller follow, in the last field's direction.

    Raises:
        Invalid: names what is wrong with the field `order_by`.
    """
    if len(text) > MAX_LENGTH:
        raise _invalid(f"is {len(text)} characters long, at most {MAX_LENGTH} are read", orders)
    steps: dict[str, tuple[Part, bool]] = {}
    falls = False
    for field, falls in _fields(text if text.strip() else default, orders):
        for part in orders[field]:
            steps.setdefault(part.row, (part, falls))
    for part in key:
        steps.setdefault(part.row, (part, falls))
    return Ordering(tuple(steps.values()))


def _fields(text: str, orders: Orders) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    for item in text.split(","):
        words = item.split()
        if not words or len(words) > _WORDS or words[1:] not in ([], ["asc"], ["desc"]):
            raise _invalid(f"{item.strip()!r} is not a field with an optional ` desc`", orders)
        if words[0] not in orders:
            raise _invalid(f"there is no field {words[0]!r} to order by", orders)
        if any(words[0] == field for field, _ in found):
            raise _invalid(f"names {words[0]!r} twice", orders)
        found.append((words[0], words[1:] == ["desc"]))
    if len(found) > MAX_FIELDS:
        raise _invalid(f"names more than {MAX_FIELDS} fields", orders)
    return found


def _order(part: Part, *, falls: bool) -> str:
    if not part.nullable:
        return part.sql + (" DESC" if falls else "")
    return part.sql + (" DESC NULLS LAST" if falls else " ASC NULLS FIRST")


def _further(part: Part, value: Any, number: str, *, falls: bool) -> str:
    if not part.nullable:
        return f"{part.sql} {'<' if falls else '>'} {number}"
    if value is None:  # NULL is the smallest; the parameter is named so that its place in the list stays
        return f"({number} is null and {'false' if falls else f'{part.sql} is not null'})"
    return f"({part.sql} < {number} or {part.sql} is null)" if falls else f"{part.sql} > {number}"


def _same(part: Part, number: str) -> str:
    return f"{part.sql} is not distinct from {number}" if part.nullable else f"{part.sql} = {number}"


def _invalid(what: str, orders: Orders) -> Invalid:
    return Invalid.one("order_by", f"{what}; known: {', '.join(sorted(orders))}")
