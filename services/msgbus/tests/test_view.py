"""What the view takes, drops and notices."""

from __future__ import annotations

import random

from kubegems.agent.v1.events_pb2 import ObservedChange, Watermark
from services.msgbus.view import View

CLUSTER = "c1"


def change(
    counter: int, name: str = "", verb: ObservedChange.Verb.ValueType = ObservedChange.MODIFIED, epoch: str = "e1", version: str = ""
) -> ObservedChange:
    return ObservedChange(
        epoch=epoch,
        counter=counter,
        verb=verb,
        resource="pods",
        version="v1",
        namespace="ns",
        name=name,
        resource_version=version or str(counter),
    )


def listing(start: int, *names: str, epoch: str = "e1") -> list[ObservedChange]:
    changes = [change(start, verb=ObservedChange.LISTING, epoch=epoch)]
    changes += [change(start + 1 + i, name, ObservedChange.ADDED, epoch, version=f"rv-{name}") for i, name in enumerate(names)]
    return [*changes, change(start + 1 + len(names), verb=ObservedChange.LISTED, epoch=epoch)]


def names(view: View) -> set[str]:
    return {c.name for c in view.objects(CLUSTER, "ns")}


def test_a_listing_replaces_what_was_known() -> None:
    """Objects that a fresh list does not name are told as deleted."""
    view = View()
    for c in listing(1, "a", "b"):
        view.take(CLUSTER, c)
    shown = [t.change for c in listing(5, "b") for t in view.take(CLUSTER, c).seen]
    assert names(view) == {"b"}
    assert [(t.verb, t.name) for t in shown] == [(ObservedChange.DELETED, "a")]


def test_doubled_and_late_messages_change_nothing() -> None:
    """An older or equal counter of the same epoch is dropped."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    assert view.take(CLUSTER, change(4, "a", version="new")).seen
    assert not view.take(CLUSTER, change(4, "a", version="new")).seen
    assert not view.take(CLUSTER, change(2, "ghost")).seen
    assert names(view) == {"a"}


def test_a_gap_is_noticed_once_and_healed_by_a_listing() -> None:
    """A missing counter makes the kind stale until it is listed afresh."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    assert view.take(CLUSTER, change(6, "a")).gap
    assert not view.take(CLUSTER, change(9, "a")).gap
    for c in listing(10, "a"):
        assert not view.take(CLUSTER, c).gap
    assert view.take(CLUSTER, change(15, "a")).gap


def test_a_new_epoch_that_starts_with_a_listing_is_no_gap() -> None:
    """A restarted agent counts afresh."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    assert not any(view.take(CLUSTER, c).gap for c in listing(1, "b", epoch="e2"))
    assert names(view) == {"b"}


def test_resuming_gives_exactly_what_was_missed_or_says_that_it_cannot() -> None:
    """`since` returns the changes after a vector, or None when the past does not reach back."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    vector = view.vector()
    for counter in (4, 5):
        view.take(CLUSTER, change(counter, f"n{counter}"))
    missed, lost = view.since(vector)
    assert ([s.change.name for s in missed], lost) == (["n4", "n5"], set())
    assert view.since(view.vector()) == ([], set())
    assert view.since({f"{CLUSTER}//pods": ["other", 5]}) == ([], {CLUSTER})
    assert view.since({"elsewhere//pods": ["e1", 5], **view.vector()}) == ([], {"elsewhere"})


def test_any_losses_end_in_the_clusters_list() -> None:
    """Random losses, doubles and swaps; after the next listing the view equals the cluster."""
    for seed in range(30):
        rng = random.Random(seed)
        view, real, counter = View(), set[str](), 0
        for _ in range(200):
            counter += 1
            name = rng.choice("abcdef")
            verb = rng.choice([ObservedChange.ADDED, ObservedChange.DELETED])
            (real.add if verb == ObservedChange.ADDED else real.discard)(name)
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                view.take(CLUSTER, change(counter, name, verb))
        for c in listing(counter + 1, *real):
            view.take(CLUSTER, c)
        assert names(view) == real


def mark(epoch: str = "e1", **counters: int) -> Watermark:
    return Watermark(epoch=epoch, marks=[Watermark.Mark(resource=name, counter=counter) for name, counter in counters.items()])


def test_a_watermark_finds_what_is_missing_at_the_very_end() -> None:
    """No later change would tell; with the next whole list all is well."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    assert not view.mark(CLUSTER, mark(pods=3)).gap
    assert view.mark(CLUSTER, mark(pods=4)).gap
    assert view.stale(CLUSTER)
    assert not view.mark(CLUSTER, mark(pods=4)).gap, "told once"
    for c in listing(5):
        view.take(CLUSTER, c)
    assert (names(view), view.stale(CLUSTER)) == (set(), False)
    assert view.mark(CLUSTER, mark("e2", pods=1)).gap, "a start of the agent that we know nothing of"


def test_a_kind_that_is_not_observed_any_more_is_forgotten() -> None:
    """Its objects are not told as deleted: nobody knows."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    assert view.mark(CLUSTER, mark()).gone == [("", "pods")]
    assert names(view) == set()


def test_a_torn_list_deletes_nothing_and_heals_nothing() -> None:
    """A list of which a part was lost must not be taken for the whole."""
    view = View()
    for c in listing(1, "a", "b", "c"):
        view.take(CLUSTER, c)
    torn = [c for c in listing(6, "a", "b", "c") if c.name != "b"]
    told = [view.take(CLUSTER, c) for c in torn]
    assert (names(view), any(t.seen for t in told), view.stale(CLUSTER)) == ({"a", "b", "c"}, False, True)
    for c in listing(11, "a", "c"):
        view.take(CLUSTER, c)
    assert (names(view), view.stale(CLUSTER)) == ({"a", "c"}, False)


def test_the_past_that_is_kept_is_bounded() -> None:
    """Older tokens are told that they reach back too far, younger ones get what they missed."""
    view = View(recent=10)
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    old = view.vector()
    for counter in range(4, 14):
        view.take(CLUSTER, change(counter, "n"))
    young = view.vector()
    for counter in range(14, 18):
        view.take(CLUSTER, change(counter, "n"))
    assert view.since(old) == ([], {CLUSTER})
    assert [s.change.counter for s in view.since(young)[0]] == [14, 15, 16, 17]


def test_only_the_present_epoch_is_replayed() -> None:
    """An agent's restart ends the past: what it said before is never told again, after what it said since."""
    view = View()
    for c in (*listing(1, "a"), *(change(4 + i, "old") for i in range(20)), *listing(1, "a", epoch="e2"), change(4, "new", epoch="e2")):
        view.take(CLUSTER, c)
    missed, lost = view.since({f"{CLUSTER}//pods": ["e2", 3]})
    assert ([seen.change.name for seen in missed], lost) == (["new"], set())
    assert view.since({f"{CLUSTER}//pods": ["e1", 10]})[1] == {CLUSTER}


def test_a_kind_that_was_forgotten_meanwhile_is_lost_to_who_resumes() -> None:
    """Nobody can tell what became of its objects; who does not ask for it loses nothing."""
    view = View()
    for c in listing(1, "a"):
        view.take(CLUSTER, c)
    token = view.vector()
    view.mark(CLUSTER, Watermark(epoch="e1", marks=[Watermark.Mark(resource="nodes")]))
    assert view.since(token)[1] == {CLUSTER}
    assert view.since(token, lambda _uid, kind: kind == ("", "nodes"))[1] == set()
