"""What a hostile cluster says is made harmless."""

from __future__ import annotations

import asyncio
import random

import pytest

from kubegems.agent.v1.events_pb2 import ObservedChange
from kubegems.messages.v1.event_pb2 import Change
from libs.clock import new_id
from services.msgbus.domain import Grants, Selection, Selector
from services.msgbus.hub import Hub, Subscription
from services.msgbus.pace import Pace
from services.msgbus.subscriber import Queue
from services.msgbus.view import MOST_KINDS, View
from services.msgbus.wash import LONGEST_COLUMN, MOST_LABELS, escaped, started, washed


def change(**values: object) -> ObservedChange:
    given = {"resource": "pods", "version": "v1", "kind": "Pod", "namespace": "acme", "name": "web", "verb": ObservedChange.ADDED} | values
    return ObservedChange(**given)  # type: ignore[arg-type] # fields by name


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/../b"}, {"name": "a\nb"}, {"name": ""}, {"name": "x" * 254}, {"name": ".."}, {"name": "\u202egnp.exe"},
        {"namespace": "other/pods"}, {"namespace": "A"}, {"namespace": "n" * 64}, {"resource": "pods/exec"}, {"resource": ""},
        {"group": "a b"}, {"kind": "<script>"}, {"resource": "secrets"}, {"version": "v1?x"},
    ],
)  # fmt: skip
def test_impossible_names_are_refused(wrong: dict[str, str]) -> None:
    """They can neither be shown nor become part of a path; the control passes."""
    assert washed(change())
    assert washed(change(name="system:node-proxier", resource="clusterroles", group="rbac.authorization.k8s.io", namespace=""))
    assert not washed(change(**wrong))


def test_texts_are_escaped_and_cut() -> None:
    """Nothing hides, turns or breaks a reader's screen; honest words of any language stay."""
    hostile = change(
        labels={f"l{i}": "v" for i in range(100)} | {"big": "x" * 5000}, columns={"message": "\x1b[2Jgone\u202e\u200b", "much": "y" * 9000}
    )
    assert washed(hostile)
    assert len(hostile.labels) == MOST_LABELS
    assert all(len(value) <= 63 for value in hostile.labels.values())
    assert hostile.columns["message"] == "\\u001b[2Jgone\\u202e\\u200b"
    assert len(hostile.columns["much"]) == LONGEST_COLUMN
    assert escaped("Grüße, 世界", 100) == "Grüße, 世界"


def test_a_refused_change_counts_and_makes_no_gap() -> None:
    """So a hostile name costs its own cluster one line, not a list for ever."""
    view = View()
    view.take("c", change(epoch="e", counter=1, verb=ObservedChange.LISTING))
    view.take("c", change(epoch="e", counter=2, verb=ObservedChange.LISTED))
    taken = view.take("c", change(epoch="e", counter=3, name="a/b"), shown=False)
    assert (taken.seen, taken.gap) == ([], False)
    assert not view.take("c", change(epoch="e", counter=4)).gap


def test_a_cluster_cannot_fill_the_memory() -> None:
    """Beyond the most objects new ones are left out, told once; known ones still change and go."""
    view = View(most_objects=3)
    view.take("c", change(epoch="e", counter=1, verb=ObservedChange.LISTING))
    told = [view.take("c", change(epoch="e", counter=2 + i, name=f"p{i}")).full for i in range(6)]
    assert (view.count("c"), told.count(True)) == (3, 1)
    assert view.take("c", change(epoch="e", counter=9, name="p1", verb=ObservedChange.DELETED)).seen
    assert view.take("c", change(epoch="e", counter=10, name="p9")).seen


def test_what_is_kept_of_a_cluster_is_bounded_in_bytes_and_kinds_too() -> None:
    """Large objects are left out, known ones that grow as well; names of kinds and places that are made up cost nothing."""
    view = View(most_bytes=3000, recent_bytes=5000)
    big = {"message": "x" * 1000}
    for i in range(9):
        view.take("c", change(epoch="e", counter=1 + i, name=f"p{i}", columns=big))
    assert view.count("c") == 2
    assert view.take("c", change(epoch="e", counter=10, name="p1", columns={"message": "x" * 2000})).full
    assert view.count("c") == 1
    for i in range(3000):
        view.take("d", change(epoch="e", counter=1, resource=f"r{i}", verb=ObservedChange.LISTING))
        view.take("c", change(epoch="e", counter=11 + i, name="p", namespace=f"n{i}", columns=big | {"more": "x" * 2000}))
    assert len(view.vector(lambda uid, _kind: uid == "d")) == MOST_KINDS
    assert len(view._objects["c"]) == 1
    for i in range(100):
        view.take("c", change(epoch="e", counter=4000 + i, name="p0", resource_version=str(i), columns=big))
    assert sum(seen.size for _, seen in view._order) <= 5000


def test_nothing_that_a_cluster_can_say_stops_the_reader() -> None:
    """Verbs that there are not, made-up kinds, times and names: each is taken or refused, whoever listens."""
    rng, hub = random.Random(7), Hub(View())
    listener = Subscription(user="admin", selection=Selection((Selector(labels=frozenset({("a", "b")})), Selector())), queue=Queue(50))
    hub.add(listener)
    hub.regrant(listener, Grants(everything=True))
    for counter in range(2000):
        said = change(
            epoch="e", counter=counter + rng.randrange(3), verb=rng.choice([*range(7), 99, -1]), name=rng.choice(["a", "b", ".."]),
            resource=rng.choice(["pods", "a/b", "services"]), labels=rng.choice([{}, {"a": "b"}]), resource_version=str(rng.random()),
        )  # fmt: skip
        hub.take("c", said, shown=washed(said))
    assert {item.shown for item in listener.queue.now() if item.is_change} <= {Change.ADDED, Change.MODIFIED, Change.DELETED}
    assert hub.view.count("c")


@pytest.mark.parametrize("epoch", ["", "e" * 65, "a/b", "e\n"])
def test_an_impossible_start_of_an_agent_is_refused(epoch: str) -> None:
    """Or a cluster's lie would stand in everybody's resume tokens, and make them too large."""
    started(change(epoch=new_id().hex))
    with pytest.raises(ValueError, match="epoch"):
        started(change(epoch=epoch))


async def test_a_flooding_cluster_is_read_later() -> None:
    """Rate and bytes are both held; what lies within them waits for nothing."""
    pace = Pace(1000, 1e6, burst=0.1)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for _ in range(100):
        await pace.take(10)
    assert pace.waited == 0
    for _ in range(100):
        await pace.take(10)
    assert 0.05 < loop.time() - started < 1
    big = Pace(1e6, 1000, burst=0.1)
    await big.take(200)
    assert big.waited == pytest.approx(0.1)
