"""Lists: one declared source, and the caller's filter, order and page put together into one query.

A handler says what is listed (`Source`) and which of it the caller may see (`Where`); `read` takes `filter`, `order_by`,
`page_size` and `page_token` from the request, all of them, so that no list can forget one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncpg import Record

from libs.pg import filters, ordering
from libs.pg.ordering import Orders, Part
from libs.pg.paging import Pages
from libs.pg.tx import Tx
from libs.rpc.call import Call, Scopes


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

    def filter(self, text: str, fields: filters.Fields) -> None:
        """Keeps the rows that a caller's filter matches; Invalid."""
        condition, args = filters.parse(text, fields, first_parameter=len(self.args) + 1)
        self.conditions.append(condition)
        self.args += args

    @property
    def sql(self) -> str:
        """The condition."""
        return " AND ".join(f"({c})" for c in self.conditions) or "true"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is listed.

    Attributes:
        select: `SELECT … FROM …`.
        tally: `SELECT count(*) FROM …`; empty where the list does not tell how many there are.
        filters: the fields to filter by.
        orders: the fields to order by.
        key: what no two rows share, in the default order.
        default: the order when the caller names none.
    """

    select: str
    tally: str = ""
    filters: filters.Fields
    orders: Orders
    key: Sequence[Part]
    default: str


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of rows, the next page's token, and how many rows match in all (0 without a tally)."""

    rows: list[Record]
    token: str
    total: int


async def read(tx: Tx, pages: Pages, call: Call, request: Any, *, source: Source, where: Where | None = None) -> Listed:
    """Reads the page that a request asks for; Invalid names a bad `filter`, `order_by` or `page_token`.

    Args:
        tx: the transaction.
        pages: signs tokens.
        call: whose tokens they are.
        request: has `filter`, `order_by`, `page_size` and `page_token`.
        source: what is listed.
        where: what of it the caller asked for and may see.
    """
    where = where or Where()
    order = ordering.parse(request.order_by, source.orders, default=source.default, key=source.key)
    where.filter(request.filter, source.filters)
    page = pages.open(call, request, order=order.names)
    total = int(await tx.value(f"{source.tally} WHERE {where.sql}", *where.args)) if source.tally else 0
    behind, args = order.behind(page.after, first_parameter=len(where.args) + 1)
    sql = f"{source.select} WHERE {where.sql} AND {behind} ORDER BY {order.sql} LIMIT {page.limit}"
    kept, token = page.close(await tx.rows(sql, *where.args, *args), key=order.key)
    return Listed(kept, token, total)
