"""Lists: condition, filter, order and page, put together for one query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.faults import Invalid
from libs.pg import Record, Tx, filters
from libs.pg.paging import Pages
from libs.rpc.call import Call, Scopes

Key = tuple[tuple[str, str], ...]  # (SQL expression, name in the row) of each column of an order, unique together


@dataclass(slots=True)
class Where:
    """Conditions joined by AND, with their parameters."""

    conditions: list[str] = field(default_factory=list)
    args: list[Any] = field(default_factory=list)

    def add(self, condition: str, *args: Any) -> None:
        """Adds a condition, a literal of ours whose `{}` stand for the arguments."""
        numbers = [f"${len(self.args) + i + 1}" for i in range(len(args))]
        self.conditions.append(condition.format(*numbers))
        self.args += args

    def within(self, scopes: Scopes, tenant: str, name: str) -> None:
        """Keeps the rows whose name lies in the scopes.

        Args:
            scopes: where the caller holds the permission.
            tenant: SQL of the tenant's id; finds the few tenants concerned by index.
            name: SQL of the row's resource name.
        """
        if scopes.everything:
            return
        names = scopes.trees | scopes.exact
        self.add(f"{tenant} = ANY({{}}::text[])", sorted({n.split("/")[1] for n in names if n.startswith("tenants/")}))
        self.add(
            f"(({name}) = ANY({{}}::text[]) OR EXISTS (SELECT 1 FROM unnest({{}}::text[]) AS tree"
            f" WHERE ({name}) = tree OR starts_with(({name}), tree || '/')))",
            sorted(scopes.exact), sorted(scopes.trees),
        )  # fmt: skip

    def filter(self, text: str, fields: Mapping[str, str | filters.Column]) -> None:
        """Keeps the rows that a caller's filter matches."""
        condition, args = filters.parse(text, fields, first_parameter=len(self.args) + 1)
        self.conditions.append(condition)
        self.args += args

    @property
    def sql(self) -> str:
        """The condition."""
        return " AND ".join(f"({c})" for c in self.conditions) or "true"


@dataclass(frozen=True, slots=True)
class Source:
    """What is listed: `SELECT … FROM …`, `SELECT count(*) FROM …`, the orders to choose from (the first is the default)."""

    select: str
    tally: str
    orders: Mapping[str, Key]
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of rows, the next page's token, and how many rows match in all."""

    rows: list[Record]
    token: str
    total: int


async def read(tx: Tx, pages: Pages, call: Call, request: Any, *, source: Source, where: Where) -> Listed:
    """Reads the page that a request asks for; Invalid for a bad token or order."""
    name, descending = _order(getattr(request, "order_by", ""), source)
    key = source.orders[name]
    page = pages.open(call, request, order=[column for _, column in key])
    columns = [sql for sql, _ in key]
    total = int(await tx.value(f"{source.tally} WHERE {where.sql}", *where.args))
    after, args = page.where(columns, first_parameter=len(where.args) + 1, descending=descending)
    direction = " DESC" if descending else ""
    order = ", ".join(column + direction for column in columns)
    rows = await tx.rows(f"{source.select} WHERE {where.sql} AND {after} ORDER BY {order} LIMIT {page.limit}", *where.args, *args)
    kept, token = page.close(rows, key=lambda row: tuple(row[column] for _, column in key))
    return Listed(kept, token, total)


def _order(text: str, source: Source) -> tuple[str, bool]:
    words: Sequence[str] = text.split()
    if not words:
        return next(iter(source.orders)), source.descending
    if words[0] not in source.orders or list(words[1:]) not in ([], ["desc"], ["asc"]):
        raise Invalid.one("order_by", f"{text!r} is no order; known: {', '.join(source.orders)}, each with an optional ` desc`")
    return words[0], list(words[1:]) == ["desc"]
