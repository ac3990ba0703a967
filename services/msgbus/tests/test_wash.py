"""What a hostile cluster says is made harmless."""

from __future__ import annotations

import asyncio

import pytest

from kubegems.agent.v1.events_pb2 import ObservedChange
from services.msgbus.pace import Pace
from services.msgbus.view import View
from services.msgbus.wash import LONGEST_COLUMN, MOST_LABELS, escaped, washed


def change(**values: object) -> ObservedChange:
    given = {"resource": "pods", "version": "v1", "kind": "Pod", "namespace": "acme", "name": "web", "verb": ObservedChange.ADDED} | values
    return ObservedChange(**given)  # type: ignore[arg-type]


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
