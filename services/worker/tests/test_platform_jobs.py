"""The platform's own jobs on a real database; the gateway's answers are given by the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kubegems.fleet.v1 import upkeep_service_pb2 as upkeep
from kubegems.jobs.v1 import events_pb2
from libs import audit, jobs
from libs.crypt.ca import Authority
from libs.faults import Unavailable
from libs.jobs import State, window
from libs.jobs.runner import Runner
from libs.pg import Database
from services.worker import store
from services.worker.platform_jobs import ARCHIVE, CERTIFICATES, QUOTAS, RECONCILE, RETENTION, USAGE, PlatformJobs
from tests.kit.data import FreshDatabase

NOW = datetime(2026, 7, 10, 12, tzinfo=UTC)
DEV = "tenants/acme/projects/shop/environments/dev"
Sum = upkeep.ReadPodMetricsResponse.Sum


class FakeHub:
    """The gateway: one environment on each of two clusters, one of them without metrics."""

    async def certificates(self) -> Sequence[Any]:
        found = upkeep.ListAgentCertificatesResponse.Certificate(cluster="clusters/a", serial="1")
        found.expire_time.FromDatetime(NOW + timedelta(days=3))
        return [found]

    async def environments(self) -> Sequence[Any]:
        usage = upkeep.ListEnvironmentUsagesResponse.Usage
        return [
            usage(environment=DEV, cluster="clusters/a", namespace="acme-shop-dev", hard={"limits.cpu": "4"}, used={"limits.cpu": "1"}),
            usage(environment=f"{DEV}2", cluster="clusters/b", namespace="acme-shop-dev2"),
        ]

    async def quotas(self) -> Sequence[Any]:
        found = upkeep.ListQuotaUsagesResponse.Usage(tenant="tenants/acme", cluster="clusters/a", environments=1)
        found.hard["limits.cpu"], found.allocated["limits.cpu"] = "20", "4"
        return [found]

    async def pod_metrics(self, cluster: str) -> Any:
        if cluster == "clusters/b":
            raise Unavailable("offline")
        return upkeep.ReadPodMetricsResponse(served=True, sums=[Sum(namespace="acme-shop-dev", cpu=0.5, memory=1e6, pods=2)])

    async def reconcile(self, tenant: str) -> Any:
        assert tenant == "tenants/acme"
        return upkeep.ReconcileTenantResponse(compared=4, repaired=["a Environment acme-shop-dev"])


@pytest.fixture(scope="module")
async def opened(database: FreshDatabase) -> AsyncIterator[Database]:
    connected = await Database.connect(database.dsn, application_name="worker test")
    await audit.prepare(connected)
    await jobs.prepare(connected)
    await store.prepare(connected)
    yield connected
    await connected.close()


class Bench:
    """Runs one job to its end."""

    def __init__(self, database: Database, made: PlatformJobs) -> None:
        self.database = database
        self.made = made

    async def run(self, kind: str, target: str = "platform") -> jobs.Job:
        known = jobs.kinds(*self.made.kinds())

        async def may(*_: str) -> bool:
            return True

        runner = Runner(self.database, known, allowed=may, worker="w")
        async with self.database.transaction() as tx:
            job = (await jobs.enqueue(tx, known[kind].order(target, "schedules/x"))).job
            [message] = (await window.take(tx, window=10, known=sorted(known))).messages
        await runner.handle(events_pb2.JobDispatch(job=str(message.job), dispatch=message.dispatch))
        async with self.database.transaction() as tx:
            done = await jobs.store.get(tx, job.id)
        assert done is not None
        assert done.state is State.SUCCEEDED, done
        return done

    async def sql(self, text: str, *args: Any) -> Any:
        async with self.database.transaction() as tx:
            return await tx.value(text, *args)


@pytest.fixture
def bench(opened: Database, tmp_path: Path) -> Bench:
    authority, _ = Authority.create("test", now=NOW)
    (tmp_path / "ca.crt").write_text(authority.certificate)
    made = PlatformJobs(FakeHub(), [tmp_path / "ca.crt"], keep_samples=timedelta(days=2), keep_reads=timedelta(days=90), now=lambda: NOW)
    return Bench(opened, made)


async def test_certificates_that_end_soon_are_told(bench: Bench) -> None:
    """The agents' and the hub's own are looked at."""
    done = await bench.run(CERTIFICATES)
    assert (done.result["looked_at"], done.result["ending_soon"]) == (2, ["clusters/a"])
    assert any("clusters/a" in line for line in done.log)


async def test_usage_is_sampled_and_archived_by_day(bench: Bench) -> None:
    """A cluster without metrics or out of reach leaves only that part out; old samples go once their day is summed up."""
    done = await bench.run(USAGE)
    assert done.result == {"environments": 2, "measured": 1}
    await bench.sql("DELETE FROM worker.usage_samples")
    for hour, cpu in ((1, 1.0), (2, 3.0)):
        async with bench.database.transaction() as tx:
            await store.keep_samples(tx, [(DEV, NOW - timedelta(days=3, hours=hour), "clusters/a", {}, {"limits.cpu": "1"}, cpu, None)])
            await store.keep_samples(tx, [(DEV, NOW - timedelta(days=1, hours=hour), "clusters/a", {}, {}, cpu, None)])
    done = await bench.run(ARCHIVE)
    assert done.result == {"days": 2, "samples_removed": 2}
    assert await bench.sql("SELECT cpu_average FROM worker.usage_days WHERE day = '2026-07-07'") == 2.0
    assert await bench.sql("SELECT cpu_peak FROM worker.usage_days WHERE day = '2026-07-07'") == 3.0
    assert (await bench.run(ARCHIVE)).result["samples_removed"] == 0
    assert await bench.sql("SELECT samples FROM worker.usage_days WHERE day = '2026-07-07'") == 2


async def test_quota_statistics_are_kept_by_day(bench: Bench) -> None:
    """The newest figures of a day stand."""
    await bench.run(QUOTAS)
    await bench.run(QUOTAS)
    assert await bench.sql("SELECT count(*) FROM worker.quota_days") == 1
    assert await bench.sql("SELECT allocated->>'limits.cpu' FROM worker.quota_days") == "4"


async def test_retention_takes_old_reads_and_nothing_else(bench: Bench) -> None:
    """Records of changes stay for ever, young reads and sealed ones stay too; old published messages go."""
    sql = """INSERT INTO audit.events (id, time, actor, actor_uid, session, method, class, resources, tenant, scope, scopes, outcome, code,
                 reason, address, user_agent, trace_id, request_id, took_millis, request, process, sealed_seq)
             SELECT gen_random_uuid(), $1, 'x', '', '', 'm', $2, '{}', '', '', '{}', 'OK', 'OK', '', '', '', '', '', 1, '{}',
                    gen_random_uuid(), $3"""
    old = NOW - timedelta(days=91)
    for time, kind, sealed in ((old, "READ", None), (old, "WRITE", None), (old, "READ", 7), (NOW, "READ", None)):
        async with bench.database.transaction() as tx:
            await tx.execute(sql, time, kind, sealed)
    await bench.sql("UPDATE jobs.outbox SET published = '2026-07-01'")
    done = await bench.run(RETENTION)
    assert done.result["audit_reads"] == 1
    assert done.result["messages"] > 0
    assert await bench.sql("SELECT count(*) FROM audit.events") == 3


async def test_a_reconciliation_tells_what_it_put_right(bench: Bench) -> None:
    """The difference is in result and log."""
    done = await bench.run(RECONCILE, "tenants/acme")
    assert done.result == {"compared": 4, "repaired": ["a Environment acme-shop-dev"]}
    assert list(done.log) == ["put right: a Environment acme-shop-dev"]
    assert await bench.made.tenants() == ["tenants/acme"]
