"""The platform's own kinds of job: what runs by schedule, for everybody and as nobody's work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from prometheus_client import Gauge

from kubegems.fleet.v1 import upkeep_service_pb2 as upkeep
from libs.faults import Fault
from libs.jobs import Context, Kind
from libs.jobs.schedule import Schedule, Targets
from libs.pg import Tx
from services.worker import store
from services.worker.config import Config

CERTIFICATES, USAGE, ARCHIVE = "certificate-expiry", "environment-usage", "usage-archive"
QUOTAS, RETENTION, RECONCILE = "quota-statistics", "retention", "tenancy-reconciliation"
WARN = timedelta(days=14)
PART = 5000  # rows removed in one transaction
_OUTBOXES = ("identity", "tenancy", "fleet", "jobs", "messages")
_EXPIRES = Gauge("kubegems_certificate_expires_timestamp_seconds", "When a certificate ends.", ["owner"])


class Hub(Protocol):
    """What these jobs ask of the gateway."""

    async def certificates(self) -> Sequence[upkeep.ListAgentCertificatesResponse.Certificate]:
        """The newest good certificate of each cluster."""
        ...

    async def environments(self) -> Sequence[upkeep.ListEnvironmentUsagesResponse.Usage]:
        """What environments may use and use."""
        ...

    async def quotas(self) -> Sequence[upkeep.ListQuotaUsagesResponse.Usage]:
        """What tenants may use of clusters."""
        ...

    async def pod_metrics(self, cluster: str) -> upkeep.ReadPodMetricsResponse:
        """What pods use now."""
        ...

    async def reconcile(self, tenant: str) -> upkeep.ReconcileTenantResponse:
        """Compares and puts right."""
        ...


async def platform() -> Sequence[str]:
    """The one target of work for the whole platform."""
    return ["platform"]


class PlatformJobs:
    """Handlers.

    Args:
        hub: the gateway's data.
        own: certificate files of this service and its CA.
        keep_samples: how long single samples of usage are kept; days are kept for ever.
        keep_reads: how long audit records of reads are kept.
        now: wall time.
    """

    def __init__(
        self, hub: Hub, own: Sequence[Path], *, keep_samples: timedelta, keep_reads: timedelta,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        self._hub = hub
        self._own = own
        self._keep_samples = keep_samples
        self._keep_reads = keep_reads
        self._now = now

    def kinds(self) -> list[Kind]:
        """All kinds."""
        common: dict[str, Any] = {"permission": "jobs.jobs.create", "queue": "maintenance", "unique": True}
        whole = common | {"targets": "platform", "depth": 1}
        return [
            Kind(CERTIFICATES, handler=self.expiry, **whole),
            Kind(USAGE, handler=self.usage, **whole),
            Kind(ARCHIVE, handler=self.archive, **whole),
            Kind(QUOTAS, handler=self.statistics, **whole),
            Kind(RETENTION, handler=self.retention, timeout=timedelta(minutes=30), **whole),
            Kind(
                RECONCILE, targets="tenants", depth=2, handler=self.reconcile,
                concurrency_key=lambda target, _payload: f"reconcile/{target}", **common,
            ),
        ]  # fmt: skip

    async def expiry(self, context: Context, _payload: Message) -> Message:
        """Looks when certificates end: the members' agents' and the hub's own."""
        ends = {found.cluster: found.expire_time.ToDatetime(tzinfo=UTC) for found in await self._hub.certificates()}
        ends |= {f"hub/{path.stem}": x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc for path in self._own}
        soon = []
        for owner, end in sorted(ends.items()):
            _EXPIRES.labels(owner).set(end.timestamp())
            if end - self._now() < WARN:
                soon.append(owner)
                context.log(f"{owner}: ends {end.isoformat()}")
        return _struct(looked_at=len(ends), ending_soon=soon, first_end=min(ends.values()).isoformat() if ends else "")

    async def usage(self, context: Context, _payload: Message) -> Message:
        """Takes one sample of what every environment uses; a cluster that cannot be reached or has no metrics leaves that part out."""
        time = context.job.create_time  # a second run of the same job writes the same rows
        environments = await self._hub.environments()
        metrics = {cluster: await self._metrics(context, cluster) for cluster in sorted({found.cluster for found in environments})}
        samples = []
        for found in environments:
            sum_ = metrics[found.cluster].get(found.namespace)
            served = found.cluster in metrics and bool(metrics[found.cluster])
            cpu = sum_.cpu if sum_ else (0.0 if served else None)
            memory = sum_.memory if sum_ else (0.0 if served else None)
            samples.append((found.environment, time, found.cluster, dict(found.hard), dict(found.used), cpu, memory))

        async def keep(tx: Tx) -> None:
            await store.keep_samples(tx, samples)

        context.effect(keep)
        return _struct(environments=len(samples), measured=sum(1 for sample in samples if sample[5] is not None))

    async def _metrics(self, context: Context, cluster: str) -> dict[str, upkeep.ReadPodMetricsResponse.Sum]:
        try:
            reply = await self._hub.pod_metrics(cluster)
        except Fault as fault:
            context.log(f"{cluster}: {fault}")
            return {}
        return {sum_.namespace: sum_ for sum_ in reply.sums} if reply.served else {}

    async def archive(self, context: Context, _payload: Message) -> Message:
        """Sums up the days that are over and lets go of old samples."""
        async with context.transaction() as tx:
            days, gone = await store.archive(tx, self._now(), self._keep_samples)
        return _struct(days=days, samples_removed=gone)

    async def statistics(self, context: Context, _payload: Message) -> Message:
        """Keeps today's figures of every quota."""
        today = self._now().date()
        rows = [
            (q.tenant, q.cluster, today, dict(q.hard), dict(q.allocated), dict(q.used), q.environments) for q in await self._hub.quotas()
        ]

        async def keep(tx: Tx) -> None:
            await store.keep_quotas(tx, rows)

        context.effect(keep)
        return _struct(quotas=len(rows))

    async def retention(self, context: Context, _payload: Message) -> Message:
        """Removes old audit records of reads, and messages that were published long ago, a part at a time."""
        reads = messages = 0
        while True:
            async with context.transaction() as tx:
                read = await store.trim_reads(tx, self._now() - self._keep_reads, PART)
                published = sum((await store.trim_outbox(tx, _OUTBOXES, self._now() - timedelta(days=2), PART)).values())
            reads, messages = reads + read, messages + published
            context.progress(50, f"{reads} audit records and {messages} messages removed")
            if read < PART and published < PART:
                return _struct(audit_reads=reads, messages=messages)

    async def reconcile(self, context: Context, _payload: Message) -> Message:
        """Derives a tenant's desired state anew and compares; what was not so is put right and told."""
        reply = await self._hub.reconcile(context.job.target)
        for line in reply.repaired:
            context.log(f"put right: {line}")
        return _struct(compared=reply.compared, repaired=list(reply.repaired))

    async def tenants(self) -> Sequence[str]:
        """All tenants that have a quota somewhere."""
        return sorted({quota.tenant for quota in await self._hub.quotas()})


def schedules(made: PlatformJobs, config: Config, online: Targets, inventory: str) -> list[Schedule]:
    """The schedules that come with this release."""
    every = timedelta(seconds=config.inventory_seconds)
    return [
        Schedule(name="inventory", kind=inventory, interval=every, targets=online, missed="SKIP"),
        Schedule(name=USAGE, kind=USAGE, interval=timedelta(seconds=config.usage_seconds), targets=platform, missed="SKIP"),
        Schedule(name=CERTIFICATES, kind=CERTIFICATES, cron="17 * * * *", jitter=timedelta(minutes=5), targets=platform),
        Schedule(name=ARCHIVE, kind=ARCHIVE, cron="5 0 * * *", jitter=timedelta(minutes=20), targets=platform),
        Schedule(name=QUOTAS, kind=QUOTAS, cron="*/30 * * * *", jitter=timedelta(minutes=2), targets=platform),
        Schedule(name=RETENTION, kind=RETENTION, cron="35 1 * * *", jitter=timedelta(minutes=30), targets=platform),
        Schedule(name=RECONCILE, kind=RECONCILE, cron="50 * * * *", jitter=timedelta(minutes=5), targets=made.tenants),
    ]


def _struct(**values: Any) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made
