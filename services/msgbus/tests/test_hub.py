"""Who sees what: rights, selectors, slow readers, lost scopes."""

from __future__ import annotations

import random
from dataclasses import replace

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.jobs.v1.events_pb2 import JobMoved
from kubegems.messages.v1 import event_pb2
from kubegems.messages.v1.event_pb2 import Event
from kubegems.messages.v1.events_pb2 import NoticeStored
from libs.crypt.box import Box
from services.msgbus import resume
from services.msgbus.domain import Environment, Grants, Selection, Selector, resources
from services.msgbus.hub import Hub, Subscription
from services.msgbus.subscriber import Queue
from services.msgbus.view import View

ACME = Environment("tenants/acme/projects/shop/environments/dev", "clusters/local", "c1", "acme-shop-dev")
GLOBEX = Environment("tenants/globex/projects/x/environments/dev", "clusters/local", "c1", "globex-x-dev")
DEV = Grants(environments={ACME.place: ACME})
ADMIN = Grants(everything=True, environments={ACME.place: ACME, GLOBEX.place: GLOBEX})


def observed(
    counter: int, namespace: str, name: str, verb: ObservedChange.Verb.ValueType = ObservedChange.MODIFIED, resource: str = "pods"
) -> ObservedChange:
    return ObservedChange(
        epoch="e", counter=counter, verb=verb, resource=resource, namespace=namespace, name=name, resource_version=str(counter)
    )


def hub() -> Hub:
    made = Hub(View())
    made.clusters["c1"] = "clusters/local"
    made.take("c1", ObservedChange(epoch="e", counter=1, verb=ObservedChange.LISTING, resource="pods"))
    made.take("c1", ObservedChange(epoch="e", counter=2, verb=ObservedChange.LISTED, resource="pods"))
    return made


def subscribed(to: Hub, grants: Grants, selector: Selector | None = None, size: int = 100, *, jobs: bool = False) -> Subscription:
    made = Subscription(user="dev", selection=Selection((selector or Selector(),), jobs), queue=Queue(size), grants=grants)
    to.add(made)
    return made


async def seen(subscription: Subscription) -> list[tuple[str, str]]:
    return [(e.change.environment or e.change.namespace, e.change.object) for e in await taken(subscription)]


async def taken(subscription: Subscription) -> list[Event]:
    """What waits, as it would be sent."""
    found = []
    for item in subscription.queue.now():
        event = Event()
        event.CopyFrom(item.event)
        if item.is_change:
            event.change.verb = item.shown
        found.append(event)
    return found


async def test_a_user_sees_its_own_environment_and_admin_sees_both() -> None:
    """Nothing of another tenant; the admin is the positive control."""
    h = hub()
    dev, admin = subscribed(h, DEV), subscribed(h, ADMIN)
    h.take("c1", observed(3, "acme-shop-dev", "web"))
    h.take("c1", observed(4, "globex-x-dev", "secret"))
    h.take("c1", observed(5, "kube-system", "dns"))
    assert await seen(dev) == [(ACME.name, "web")]
    assert await seen(admin) == [(ACME.name, "web"), (GLOBEX.name, "secret"), ("kube-system", "dns")]


async def test_labels_never_decide_rights() -> None:
    """A hostile cluster's labels do not carry an object into another tenant's sight."""
    h = hub()
    dev = subscribed(h, DEV)
    forged = observed(3, "globex-x-dev", "secret")
    forged.labels["gems.kubegems.io/tenant"] = "acme"
    h.take("c1", forged)
    assert await seen(dev) == []


async def test_selectors_narrow_by_scope_kind_and_cluster() -> None:
    """Each selector leaves out what was not asked for."""
    h = hub()
    scoped = subscribed(h, ADMIN, Selector(scopes=("tenants/globex",)))
    kinds = subscribed(h, ADMIN, Selector(resources=resources(["deployments.apps"])))
    elsewhere = subscribed(h, ADMIN, Selector(cluster="clusters/other"))
    h.take("c1", observed(3, "acme-shop-dev", "web"))
    h.take("c1", observed(4, "globex-x-dev", "api"))
    assert await seen(scoped) == [(GLOBEX.name, "api")]
    assert await seen(kinds) == []
    assert await seen(elsewhere) == []


async def test_a_frozen_subscriber_gets_resync_and_costs_nobody_else_anything() -> None:
    """Its queue stays bounded, one RESYNC stands for all that was dropped, others lose nothing."""
    h = hub()
    frozen, quick = subscribed(h, DEV, size=3), subscribed(h, DEV, size=100)
    for i in range(10):
        h.take("c1", observed(3 + i, "acme-shop-dev", f"web{i}"))
        assert len(frozen.queue) <= 4
    assert len(await seen(quick)) == 10
    events = await taken(frozen)
    assert any(e.kind == Event.RESYNC and e.resync.reason == "SLOW_SUBSCRIBER" for e in events)


async def test_changes_of_one_object_are_coalesced_to_the_newest() -> None:
    """A reader that was away sees the newest state, as ADDED when it never heard of the object."""
    h = hub()
    dev = subscribed(h, DEV)
    h.take("c1", observed(3, "acme-shop-dev", "web", ObservedChange.ADDED))
    h.take("c1", observed(4, "acme-shop-dev", "web"))
    [event] = await taken(dev)
    assert (event.change.verb, event.change.resource_version) == (event_pb2.Change.ADDED, "4")


async def test_a_lost_scope_is_told_and_cut_even_from_what_waits() -> None:
    """After a regrant nothing of the lost environment leaves the queue; the stream goes on with the rest."""
    h = hub()
    both = subscribed(h, Grants(environments={ACME.place: ACME, GLOBEX.place: GLOBEX}))
    h.take("c1", observed(3, "acme-shop-dev", "web"))
    h.take("c1", observed(4, "globex-x-dev", "api"))
    h.regrant(both, Grants(environments={GLOBEX.place: GLOBEX}))
    h.take("c1", observed(5, "acme-shop-dev", "web"))
    events = await taken(both)
    assert [(e.kind, e.scope or e.change.environment) for e in events] == [(Event.CHANGE, GLOBEX.name), (Event.SCOPE_REVOKED, ACME.name)]


async def test_a_gap_is_told_to_those_it_concerns() -> None:
    """A missing counter becomes a RESYNC of that cluster."""
    h = hub()
    dev = subscribed(h, DEV)
    assert h.take("c1", observed(9, "acme-shop-dev", "web"))
    events = await taken(dev)
    assert [e.resync.reason for e in events if e.kind == Event.RESYNC] == ["GAP"]


async def test_job_progress_reaches_those_who_may_read_the_target() -> None:
    """Not others, not who started it once the right is lost, or by a key without it, and not those who did not ask."""
    h = hub()
    starter = subscribed(h, Grants(), jobs=True)
    platform = subscribed(h, Grants(job_scopes=frozenset({""})), jobs=True)
    readers = subscribed(h, Grants(job_scopes=frozenset({"tenants/acme"})), jobs=True)
    others = subscribed(h, Grants(job_scopes=frozenset({"tenants/globex"})), jobs=True)
    silent = subscribed(h, ADMIN)
    readers.user = others.user = "someone"
    h.job_moved(JobMoved(name="jobs/1", state="RUNNING", percent=10, target="tenants/acme/projects/shop", creator="users/dev"))
    assert [len(s.queue) for s in (starter, platform, readers, others, silent)] == [0, 1, 1, 0, 0]


def test_resume_tokens_are_useless_to_others_and_for_other_questions() -> None:
    """A token opens only for the same user and selectors, and not when it was changed."""
    box = Box(b"k" * 32)
    asked = resume.selectors_hash(Selection((Selector(("tenants/acme",)),)))
    vector: resume.Vector = {"c1//pods": ["e", 4]}
    token = resume.seal(box, resume.heads("dev", asked, {"": "x"}), resume.packed(vector))
    assert resume.open_token(box, token, "dev", asked) == resume.Past({"": "x"}, vector)
    assert resume.open_token(box, token, "eve", asked) is None
    assert resume.open_token(box, token, "dev", resume.selectors_hash(Selection())) is None
    assert resume.open_token(box, token[:-4] + "AAAA", "dev", asked) is None
    assert resume.open_token(box, "%%%", "dev", asked) is None


def test_resume_tokens_hold_4_kb_at_most() -> None:
    """Too many environments become a digest; a vector that is too large no token at all."""
    box = Box(b"k" * 32)
    many = resume.marks({f"tenants/{random.Random(i).randbytes(9).hex()}": ("c1", str(i)) for i in range(500)})
    token = resume.seal(box, resume.heads("dev", "h", many), resume.packed({"c1//pods": ["e", 4]}))
    assert 0 < len(token) <= resume.LONGEST
    assert resume.open_token(box, token, "dev", "h") == resume.Past(resume.digest(many), {"c1//pods": ["e", 4]})
    large: resume.Vector = {f"{random.Random(i).randbytes(18).hex()}/g/r": ["e", i] for i in range(300)}
    assert resume.seal(box, resume.heads("dev", "h", {}), resume.packed(large)) == ""
    assert resume.open_token(box, "A" * (resume.LONGEST + 1), "dev", "h") is None


def test_the_same_rights_told_again_change_nothing() -> None:
    """As after a break of the watch, for thousands at once: neither what waits nor what was made of the rights."""
    h = hub()
    admin = subscribed(h, Grants())
    h.regrant(admin, ADMIN)
    before, admin.heads = admin.grants, (b"made",)
    assert h.regrant(admin, replace(ADMIN, changed=1.0)) == []
    assert (admin.grants is before, admin.heads, len(admin.queue)) == (True, (b"made",), 0)
    h.regrant(admin, DEV)
    assert admin.grants == DEV
    assert not admin.heads


async def test_jobs_and_messages_of_lost_rights_are_taken_back() -> None:
    """What waits is cut, and a RESYNC says to list again; who did not ask for them hears nothing."""
    h = hub()
    before = Grants(job_scopes=frozenset({"tenants/acme"}), audiences=frozenset({"tenants/acme"}))
    mine = subscribed(h, before, jobs=True)
    h.reselect(mine, Selection(jobs=True, notices=True))
    silent = subscribed(h, before)
    h.job_moved(JobMoved(name="jobs/1", state="RUNNING", target="tenants/acme", creator="users/other"))
    h.notice(NoticeStored(id="n", audiences=["tenants/acme"]))
    assert len(mine.queue) == 2
    for subscription in (mine, silent):
        h.regrant(subscription, Grants())
    assert [(e.kind, e.resync.scope, e.resync.reason) for e in await taken(mine)] == [
        (Event.RESYNC, "jobs", "RIGHTS_CHANGED"),
        (Event.RESYNC, "inbox", "RIGHTS_CHANGED"),
    ]
    assert await taken(silent) == []


async def test_an_environment_that_ends_is_told_to_who_sees_everything() -> None:
    """Asked for by scope, its objects lie in none afterwards: SCOPE_REVOKED; who asked for all goes on to see them."""
    h = hub()
    scoped, everywhere = subscribed(h, ADMIN, Selector(scopes=("tenants/acme",))), subscribed(h, ADMIN)
    ended = Grants(everything=True, environments={GLOBEX.place: GLOBEX})
    for subscription in (scoped, everywhere):
        h.regrant(subscription, ended)
    h.take("c1", observed(3, "acme-shop-dev", "web", ObservedChange.ADDED))
    assert [(e.kind, e.scope) for e in await taken(scoped)] == [(Event.SCOPE_REVOKED, ACME.name)]
    assert await seen(everywhere) == [("acme-shop-dev", "web")]
    [again] = h.regrant(scoped, ADMIN)
    assert again == ACME
