"""What the hub is told of desired objects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from kubegems.agent.v1 import desired_state_service_pb2 as wire
from libs import faults
from libs.kube import KubeClient, Store
from libs.kube.resources import NAMESPACES, OURS, TENANTS
from libs.kube.store import key_of
from services.agent import status as status_module
from services.agent import status_parts
from services.agent.desired import domain
from services.agent.desired.applier import Overwritten
from services.agent.desired.conflicts import FieldConflict
from services.agent.desired.domain import Buried, DesiredSet, Failure, Outcome
from services.agent.object_status import Subject, failed, gone, live
from services.agent.observed.observer import Observer
from services.agent.status import REPORT, StatusReporter
from services.agent.tests.test_desired import Hub, follower

State = wire.ObjectStatus


def subject(status: dict[str, Any] | None = None, **metadata: Any) -> Subject:
    annotations = {domain.UID: "row", domain.HUB_UID: "hub", domain.GENERATION: "7"}
    found = {"metadata": {"name": "acme-shop-dev", "generation": 3, "annotations": annotations, **metadata}, "status": status or {}}
    result = Subject.of("Environment", found)
    assert result is not None
    return result


def ready(status: str, observed: int) -> dict[str, Any]:
    condition = {
        "type": "Ready", "status": status, "reason": "Because", "message": "so", "observedGeneration": observed,
        "lastTransitionTime": "2026-01-02T03:04:05Z",
    }  # fmt: skip
    return {"conditions": [condition], "used": {"limits.cpu": "1"}, "hard": {"limits.cpu": "4"}}


@pytest.mark.parametrize(
    ("status", "state"),
    [({}, State.APPLIED), (ready("True", 2), State.APPLIED), (ready("True", 3), State.READY), (ready("False", 3), State.DEGRADED)],
    ids=["silent", "stale", "ready", "degraded"],
)
def test_only_the_controllers_word_on_this_generation_counts(status: dict[str, Any], state: int) -> None:
    """Ready on an earlier generation is not ready."""
    told = live(subject(status), "", ())
    assert told.state == state
    assert (told.generation, told.uid) == (7, "row")


def test_conditions_and_quota_are_told() -> None:
    """Conditions with their times, used and hard."""
    told = live(subject(ready("True", 3)), "", ())
    assert told.conditions[0].transition_time.ToJsonString() == "2026-01-02T03:04:05Z"
    assert dict(told.used) == {"limits.cpu": "1"}
    assert dict(told.hard) == {"limits.cpu": "4"}


def test_a_removal_says_what_holds_it_up() -> None:
    """Finalizers, the namespace's conditions and the controller's word."""
    going = subject(ready("False", 3), deletionTimestamp="x", finalizers=["finalizer.gems.kubegems.io/environment"])
    told = live(going, "", ["namespace acme-shop-dev is Terminating", "SomeFinalizersRemain: pods has 1 resource instances"])
    assert told.state == State.REMOVING
    for part in ("finalizer.gems.kubegems.io/environment", "Terminating", "pods has 1", "so"):
        assert part in told.message


def test_a_held_removal_asks_for_confirmation() -> None:
    """The brake's words come with the object."""
    told = live(subject(ready("True", 3)), "confirm generation 9", ())
    assert (told.state, told.reason, told.message) == (State.REMOVING, "CONFIRMATION_NEEDED", "confirm generation 9")


def test_failures_and_the_gone() -> None:
    """What could not be applied, and what is no longer there."""
    assert failed(Failure("Tenant", "a", "u", 3, "NOT_OURS", "why")).state == State.FAILED
    assert gone(Buried("Tenant", "a", "u", 3)).state == State.REMOVED


def test_objects_of_nobody_are_not_told() -> None:
    """An object without our annotations is no one's business."""
    assert Subject.of("Tenant", {"metadata": {"name": "x", "annotations": {}}, "status": {}}) is None


class ReportedHub(Hub):
    """A hub that also takes statuses."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[wire.ReportStatusRequest] = []

    async def call(self, method: Any, request: Any, *, timeout: float) -> Any:
        """The tunnel."""
        if method is not REPORT:
            return await super().call(method, request, timeout=timeout)
        if not self.online:
            raise faults.Unavailable("no tunnel")
        self.reports.append(request)
        return wire.ReportStatusResponse()

    def state(self, number: int) -> int:
        """What the hub holds of a tenant now."""
        held: dict[str, int] = {}
        for report in self.reports:
            held = {} if report.full else held
            held |= {o.name: o.state for o in report.objects}
        return held.get(self.name(number), State.STATE_UNSPECIFIED)


@pytest.fixture
async def reporting(kube: KubeClient, tmp_path: Path) -> AsyncIterator[tuple[ReportedHub, StatusReporter]]:
    """A follower, reflectors and a reporter on a real cluster; our tenants are gone afterwards."""
    hub = ReportedHub()
    found = follower(hub, kube, tmp_path)
    observer = Observer(kube, [*OURS, NAMESPACES], registry=CollectorRegistry())
    ours = {kind.kind: observer.reflectors[kind] for kind in OURS}
    reporter = StatusReporter(hub, found, ours, observer.reflectors[NAMESPACES], debounce=0.05)
    for kind in OURS:
        observer.listen(kind, reporter.on_change)
    observer.listen(NAMESPACES, reporter.on_namespace)
    found.on_outcome = reporter.poke
    work = [reporter.run(), found.run(), *(r.run() for r in observer.reflectors.values())]
    tasks = [asyncio.create_task(item) for item in work]
    yield hub, reporter
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    async for tenant in kube.list(TENANTS):
        if tenant["metadata"]["name"].startswith(hub.prefix):
            await kube.patch(TENANTS, tenant["metadata"]["name"], {"metadata": {"finalizers": None}})
            await kube.delete(TENANTS, tenant["metadata"]["name"])


async def test_a_copy_that_lags_makes_nothing_gone() -> None:
    """A buried object that the copy does not hold is still going, until a fresh read says that it is gone."""
    hub = ReportedHub()
    hub.reply.hub_uid = "hub"
    buried = Buried("Tenant", "a", "row-a", 2)
    outcome = Outcome(removing={("Tenant", "a"): ""})
    known = SimpleNamespace(
        outcome=outcome, desired=DesiredSet("hub", 2, "", buried=(buried,)), applied_generation=2, confirmation_needed=""
    )  # fmt: skip
    empty = SimpleNamespace(store=Store(), synced=asyncio.Event())
    empty.synced.set()
    reporter = StatusReporter(hub, known, {"Tenant": empty}, empty)  # type: ignore[arg-type,dict-item] # doubles
    await reporter.report()
    assert hub.reports[0].full
    assert [o.state for o in hub.reports[0].objects] == [State.REMOVING]
    outcome.removing.clear()
    outcome.removed.append(buried)
    await reporter.report()
    assert [o.state for o in hub.reports[1].objects] == [State.REMOVED]
    await reporter.report()
    assert len(hub.reports) == 2


def _reporter(hub: ReportedHub) -> tuple[SimpleNamespace, SimpleNamespace, StatusReporter]:
    """A reporter on doubles of follower and copy, with one Tenant of `hub` that is ready."""
    known = SimpleNamespace(
        outcome=Outcome(), desired=DesiredSet("hub", 4, ""), applied_generation=4, confirmation_needed="", overwritten={},
        poke=lambda: None,
    )  # fmt: skip
    copy, none = (SimpleNamespace(store=Store(), synced=asyncio.Event()) for _ in range(2))
    copy.synced.set()
    annotations = {domain.UID: "row", domain.HUB_UID: "hub", domain.GENERATION: "4"}
    copy.store.put(
        {"metadata": {"name": "a", "generation": 3, "resourceVersion": "1", "annotations": annotations}, "status": ready("True", 3)}
    )
    hub.reply.hub_uid = "hub"
    return known, copy, StatusReporter(hub, known, {"Tenant": copy}, none)  # type: ignore[arg-type,dict-item] # doubles


async def test_a_hub_whose_set_is_refused_hears_nothing_of_the_first_hubs() -> None:
    """No generation, no objects, not whole, but why; once the first hub is there again, or the set was taken, all of it."""
    hub = ReportedHub()
    known, _, reporter = _reporter(hub)
    await reporter.report()
    known.confirmation_needed, hub.reply.hub_uid = "hub-2 is another", "hub-2"
    reporter.connected()
    for _ in range(2):
        await reporter.report()
    told = hub.reports[1]
    assert (len(hub.reports), told.applied_generation, told.full, len(told.objects)) == (2, 0, False, 0)
    assert told.confirmation_needed == "hub-2 is another"
    known.desired = None  # joined anew: nothing was ever taken here
    await reporter.report()
    assert len(hub.reports) == 2
    hub.reply.hub_uid = ""
    reporter.connected()
    await reporter.report()
    assert len(hub.reports) == 2
    known.desired, hub.reply.hub_uid = DesiredSet("hub", 4, ""), "hub"
    reporter.connected()
    await reporter.report()
    assert (hub.reports[2].full, hub.reports[2].applied_generation, len(hub.reports[2].objects)) == (True, 4, 1)


async def test_one_change_makes_one_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many objects only the one that changed is looked at again; what holds one up counts as a change of it, too."""
    hub = ReportedHub()
    known, copy, reporter = _reporter(hub)
    (first,) = copy.store
    for number in range(100):
        annotations = {**first["metadata"]["annotations"], domain.UID: f"row-{number}"}
        copy.store.put({**first, "metadata": {**first["metadata"], "name": f"a-{number}", "annotations": annotations}})
    made: list[str] = []

    def counted(subject: Subject, *rest: Any) -> wire.ObjectStatus:
        made.append(subject.name)
        return live(subject, *rest)

    monkeypatch.setattr(status_module, "live", counted)
    await reporter.report()
    assert len(made) == 101
    copy.store.put({**first, "metadata": {**first["metadata"], "resourceVersion": "2"}, "status": ready("False", 3)})
    await reporter.report()
    known.outcome.removing["Tenant", "a-7"] = "confirm generation 9"
    await reporter.report()
    overwritten = Overwritten("row-8", [FieldConflict("kubectl-edit", ("spec.x",))], datetime(2026, 1, 1, tzinfo=UTC))
    known.overwritten["Tenant", "a-8"] = overwritten
    await reporter.report()
    assert made[101:] == ["a", "a-7", "a-8"]
    assert [[(o.name, o.state) for o in r.objects] for r in hub.reports[1:]] == [
        [("a", State.DEGRADED)], [("a-7", State.REMOVING)], [("a-8", State.READY)],
    ]  # fmt: skip
    assert hub.reports[3].objects[0].conditions[-1].type == "FieldsOverwritten"


async def test_a_large_picture_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of bounded size and whole in its range, ranges without a gap; when the link breaks between two, all of it comes again."""
    monkeypatch.setattr(status_parts, "PART_BYTES", 2000)
    hub = ReportedHub()
    _, copy, reporter = _reporter(hub)
    (first,) = copy.store
    for number in range(99):
        annotations = {**first["metadata"]["annotations"], domain.UID: f"row-{number}"}
        copy.store.put({**first, "metadata": {**first["metadata"], "name": f"a-{number}", "annotations": annotations}})
    real, budget = hub.call, 3

    async def breaking(*args: Any, **options: Any) -> Any:
        nonlocal budget
        budget -= 1
        hub.online = budget >= 0
        return await real(*args, **options)

    monkeypatch.setattr(hub, "call", breaking)
    with pytest.raises(faults.Unavailable):
        await reporter.report()
    assert len(hub.reports) == 3
    hub.reports.clear()
    budget = 1000
    await reporter.report()
    assert len(hub.reports) > 3
    assert [r.part.after for r in hub.reports] == ["", *(r.part.until for r in hub.reports[:-1])]
    assert (hub.reports[-1].part.until, any(r.full for r in hub.reports)) == ("", False)
    for told in hub.reports:
        assert told.HasField("part")
        assert (told.ByteSize() < 2500, told.applied_generation) == (True, 4)
        at = [f"{o.kind}/{o.name}" for o in told.objects]
        assert all(told.part.after < name and (name <= told.part.until or not told.part.until) for name in at)
    assert sorted(o.name for r in hub.reports for o in r.objects) == sorted(["a", *(f"a-{n}" for n in range(99))])
    hub.reports.clear()
    await reporter.report()
    assert not hub.reports


async def test_parts_go_to_one_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the link comes to lead to another hub between two parts, that one gets none of them."""
    monkeypatch.setattr(status_parts, "PART_BYTES", 1)
    hub = ReportedHub()
    _, copy, reporter = _reporter(hub)
    (first,) = copy.store
    copy.store.put({**first, "metadata": {**first["metadata"], "name": "b"}})
    real = hub.call

    async def moving(*args: Any, **options: Any) -> Any:
        hub.reply.hub_uid = "hub-2"
        return await real(*args, **options)

    monkeypatch.setattr(hub, "call", moving)
    with pytest.raises(faults.Unavailable):
        await reporter.report()
    assert len(hub.reports) == 1


async def test_what_was_removed_by_hand_is_gone_at_once() -> None:
    """Also when nobody puts it back, as while the cluster is paused; told once, and again when it is there again."""
    hub = ReportedHub()
    _, copy, reporter = _reporter(hub)
    await reporter.report()
    (found,) = copy.store
    copy.store.remove(key_of(found))
    for _ in range(2):
        await reporter.report()
    assert [[(o.uid, o.generation, o.state) for o in r.objects] for r in hub.reports[1:]] == [[("row", 4, State.REMOVED)]]
    assert not hub.reports[1].full
    copy.store.put(found)
    await reporter.report()
    assert [o.state for o in hub.reports[2].objects] == [State.READY]


@pytest.mark.cluster
async def test_the_hub_hears_of_every_step(reporting: tuple[ReportedHub, StatusReporter], kube: KubeClient, eventually: Any) -> None:
    """Applied, ready by the controller, removing with the finalizer that holds it, removed; a hand-made deletion is put right."""
    hub, reporter = reporting
    hub.want(1, 2)
    reporter._follower.poke()
    await eventually(lambda: hub.state(1) == State.APPLIED, within=5)
    await eventually(lambda: any(report.full for report in hub.reports), within=5)
    generation = (await kube.get(TENANTS, hub.name(1)))["metadata"]["generation"]
    condition = {
        "type": "Ready", "status": "True", "reason": "Done", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": generation,
    }  # fmt: skip
    await kube.patch_status(TENANTS, hub.name(1), {"status": {"observedGeneration": generation, "conditions": [condition]}})
    await eventually(lambda: hub.state(1) == State.READY, within=5)
    await kube.delete(TENANTS, hub.name(2))
    await eventually(lambda: hub.reports[-1].applied_generation == 1, within=5)

    await kube.patch(TENANTS, hub.name(1), {"metadata": {"finalizers": ["kubegems.test/hold"]}})
    hub.want(2)
    hub.bury(1)
    reporter._follower.poke()
    await eventually(lambda: hub.state(1) == State.REMOVING, within=5)
    assert "kubegems.test/hold" in [o.message for o in hub.reports[-1].objects if o.name == hub.name(1)][-1]
    await kube.patch(TENANTS, hub.name(1), {"metadata": {"finalizers": None}})
    await eventually(lambda: hub.state(1) == State.REMOVED, within=5)
    assert (await kube.get(TENANTS, hub.name(2)))["metadata"]["annotations"][domain.UID] == "row-2"


@pytest.mark.cluster
async def test_a_new_tunnel_gets_the_whole_picture(
    reporting: tuple[ReportedHub, StatusReporter], kube: KubeClient, eventually: Any
) -> None:
    """Nothing is lost while the tunnel is down: the first report after it is full."""
    hub, reporter = reporting
    hub.want(1)
    reporter._follower.poke()
    await eventually(lambda: hub.state(1) == State.APPLIED, within=5)
    hub.online = False
    await kube.patch_status(TENANTS, hub.name(1), {"status": {"conditions": []}})
    hub.reports.clear()
    reporter.connected()
    hub.online = True
    await eventually(lambda: hub.reports, within=5)
    assert hub.reports[0].full
    assert hub.name(1) in {o.name for o in hub.reports[0].objects}
