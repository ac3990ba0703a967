"""Every list of the gateway and the worker: filter, order and page by the one lib, its fields in the contract, its SQL true."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from libs import jobs
from libs.audit import store as audit_store
from libs.jobs import queues, schedule
from libs.jobs import store as jobs_store
from libs.pg import Database, filters, ordering
from libs.pg.filters import Column
from libs.pg.lists import Source
from services.gateway import wiring
from services.gateway.fleet import clusters_store, join_tokens_store
from services.gateway.identity import api_keys_store, service_accounts_store
from services.gateway.identity import store as identity_store
from services.gateway.tenancy import environments_store, members_store, projects_store, quotas_store, tenants_store

ROOT = Path(__file__).parents[2]
LISTS: dict[str, Source] = {
    "tenancy.v1.TenantService.ListTenants": tenants_store.SOURCE,
    "tenancy.v1.ProjectService.ListProjects": projects_store.SOURCE,
    "tenancy.v1.EnvironmentService.ListEnvironments": environments_store.SOURCE,
    "tenancy.v1.MemberService.ListMembers": members_store.SOURCE,
    "tenancy.v1.QuotaService.ListTenantQuotas": quotas_store.SOURCE,
    "fleet.v1.ClusterService.ListClusters": clusters_store.SOURCE,
    "fleet.v1.JoinTokenService.ListJoinTokens": join_tokens_store.SOURCE,
    "identity.v1.UserService.ListUsers": identity_store.USERS,
    "identity.v1.SessionService.ListSessions": identity_store.SESSIONS,
    "identity.v1.ApiKeyService.ListApiKeys": api_keys_store.SOURCE,
    "identity.v1.ServiceAccountService.ListServiceAccounts": service_accounts_store.SOURCE,
    "audit.v1.AuditService.ListAuditEvents": audit_store.SOURCE,
    "jobs.v1.JobService.ListJobs": jobs_store.SOURCE,
    "jobs.v1.QueueService.ListQueues": queues.SOURCE,
    "jobs.v1.ScheduleService.ListSchedules": schedule.SOURCE,
    "jobs.v1.ScheduleService.ListScheduleRuns": schedule.FIRINGS,
}
ELSEWHERE = ("messages.v1.",)  # msgbus: inboxes and announcements come in the order of their time, and no other
VALUES: dict[str, Any] = {"text": "x", "time": datetime(2026, 1, 1, tzinfo=UTC), "int": 1, "bool": True, "uuid": UUID(int=7)}
WRITTEN = {"text": '"x"', "texts": '"x"', "time": "2026-01-01T00:00:00Z", "int": "1", "bool": "true", "uuid": str(UUID(int=7))}


def paged() -> Iterator[Any]:
    """Descriptors of all RPCs that answer in pages."""
    for path in sorted((ROOT / "gen/kubegems").rglob("*_service_pb2.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT / "gen").with_suffix("").parts))
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from (m for m in service.methods if "page_token" in m.input_type.fields_by_name)


def short(method: Any) -> str:
    return str(method.full_name).removeprefix("kubegems.")


METHODS = {short(method): method for method in paged() if not short(method).startswith(ELSEWHERE)}
COMMENTS: dict[str, str] = orjson.loads((ROOT / "gen/kubegems/comments.json").read_bytes())


def test_every_list_is_known_here() -> None:
    """A new RPC that pages needs a line above, and so a declared source."""
    assert set(METHODS) == set(LISTS)


@pytest.mark.parametrize("name", sorted(LISTS))
def test_the_contract_names_the_fields(name: str) -> None:
    """`filter` and `order_by` are there, bounded, and their comments name exactly what can be asked; the first order is the default."""
    source, asked = LISTS[name], METHODS[name].input_type
    assert {"filter", "order_by", "page_size", "page_token"} <= set(asked.fields_by_name)
    told = {field: re.findall(r"`([^`]+)`", COMMENTS[f"{asked.full_name}.{field}"]) for field in ("filter", "order_by")}
    assert set(told["filter"]) == set(source.filters)
    first, *others = [word for word in told["order_by"] if word != "desc"]
    assert first == source.default
    assert {first.split()[0], *others} == set(source.orders)


def handlers() -> Iterator[tuple[str, ast.AsyncFunctionDef]]:
    names = {method.name for method in METHODS.values()}
    for folder in ("services/gateway", "services/worker"):
        for path in sorted((ROOT / folder).rglob("*api.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.AsyncFunctionDef) and node.name in names:
                    yield node.name, node


def test_every_handler_reads_by_the_lib() -> None:
    """No list takes its own way past filter, order or page."""
    found = dict(handlers())
    assert set(found) == {method.name for method in METHODS.values()}
    for name, node in found.items():
        assert "lists.read(" in ast.unparse(node), name


@pytest.fixture(scope="module")
async def migrated(database: Any) -> AsyncIterator[Database]:
    """A database with all the schemas of the lists."""
    opened = await Database.connect(database.dsn, application_name="test")
    await wiring.migrated(opened)
    await jobs.prepare(opened)
    yield opened
    await opened.close()


def columns(source: Source) -> Iterator[tuple[str, Column]]:
    for name, field in source.filters.items():
        yield name, field if isinstance(field, Column) else Column(field)


def questions(source: Source) -> Iterator[str]:
    for name, column in columns(source):
        for operator in ("=", "!=", ":") if column.kind in ("texts", "bool", "uuid") or column.values else ("=", "!=", ":", "<", ">="):
            for value in column.values or (WRITTEN[column.kind],):
                yield f"{name} {operator} {value}"
        yield f"NOT {name}:*"


@pytest.mark.parametrize("name", sorted(LISTS))
async def test_the_database_understands(name: str, migrated: Database) -> None:
    """Each field by each operator, all at once, and each order both ways with a page behind it, is SQL that holds."""
    source = LISTS[name]
    async with migrated.transaction(readonly=True) as tx:
        for question in questions(source):
            condition, args = filters.parse(question, source.filters)
            await tx.rows(f"{source.select} WHERE {condition} LIMIT 1", *args)
            if source.tally:
                await tx.value(f"{source.tally} WHERE {condition}", *args)
        for field in source.orders:
            for text in (field, f"{field} desc"):
                order = ordering.parse(text, source.orders, default=source.default, key=source.key)
                key = [VALUES[part.kind] for part, _ in order.steps]
                behind, args = order.behind(key, first_parameter=1)
                sql = f"{source.select} WHERE {behind} ORDER BY {order.sql} LIMIT 1"
                await tx.rows(sql, *args)


@pytest.mark.parametrize("name", sorted(LISTS))
async def test_rows_hold_the_key(name: str, migrated: Database) -> None:
    """What a page's key is made of is among the columns of each row."""
    source = LISTS[name]
    async with migrated.transaction(readonly=True) as tx:
        wrapped = f"SELECT * FROM (SELECT 1) one LEFT JOIN ({source.select} WHERE true LIMIT 1) found ON true"
        (row,) = await tx.rows(wrapped)
    parts = [*source.key, *(part for order in source.orders.values() for part in order)]
    assert {part.row for part in parts} <= set(row.keys())
