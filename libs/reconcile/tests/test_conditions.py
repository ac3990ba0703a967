"""Conditions: times that mean something, and one fact that sums up."""

from __future__ import annotations

from libs.reconcile import Condition, merged
from libs.reconcile.conditions import summed


def test_a_transition_time_moves_only_with_the_answer() -> None:
    """A new reason or generation leaves it; a new answer moves it."""
    first = merged([], [Condition("A", "False", "Starting")], now="t1", generation=1)
    second = merged(first, [Condition("A", "False", "Waiting")], now="t2", generation=2)
    third = merged(second, [Condition("A", "True", "AsWanted")], now="t3", generation=2)
    assert [c[0]["lastTransitionTime"] for c in (first, second, third)] == ["t1", "t1", "t3"]
    assert second[0]["observedGeneration"] == 2


def test_a_condition_no_longer_reported_is_dropped() -> None:
    """The status holds what is said now."""
    first = merged([], [Condition("A", "True", "x"), Condition("B", "True", "x")], now="t1", generation=1)
    assert [c["type"] for c in merged(first, [Condition("B", "True", "x")], now="t2", generation=1)] == ["B"]


def test_ready_names_what_is_missing() -> None:
    """False beats Unknown beats True, and the message says which and why."""
    ready = summed([Condition("A", "True", "x"), Condition("B", "Unknown", "Pending", "not counted"), Condition("C", "False", "Taken")])
    assert (ready.status, ready.reason, ready.message) == ("False", "Pending", "B: not counted; C: Taken")
    assert summed([Condition("B", "Unknown", "Pending")]).status == "Unknown"
    assert summed([Condition("A", "True", "x")]).status == "True"


def test_a_fact_that_does_not_count_does_not_keep_from_being_ready() -> None:
    """What nothing can mend is said, not held against the object."""
    assert summed([Condition("A", "True", "x"), Condition("Old", "False", "NotSupported", counts=False)]).status == "True"
