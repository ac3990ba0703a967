"""KeyedQueue, checked against what it promises over random histories."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.reconcile import Backoff, KeyedQueue

SPACING = 0.1
BACKOFF = Backoff(first=0.2, longest=5.0, chance=lambda: 0.0)


class Held:
    """A time that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def queue() -> tuple[KeyedQueue, Held]:
    time = Held()
    return KeyedQueue(time, backoff=BACKOFF, spacing=SPACING), time


def test_a_key_added_many_times_runs_once() -> None:
    """Additions while waiting merge."""
    keys, _ = queue()
    for _ in range(5):
        keys.add("a")
    assert keys.take() == "a"
    assert keys.take() is None


def test_a_key_added_while_at_work_runs_once_more_afterwards() -> None:
    """No change is lost, and no two workers hold one key."""
    keys, time = queue()
    keys.add("a")
    assert keys.take() == "a"
    keys.add("a")
    time.now = 10
    assert keys.take() is None
    keys.done("a")
    assert keys.take() == "a"
    keys.done("a")
    assert keys.take() is None


def test_failures_wait_longer_each_time_up_to_a_limit_and_success_forgets_them() -> None:
    """0.2, 0.4, 0.8, … at most 5 seconds; then from the start again."""
    keys, time = queue()
    delays = []
    for _ in range(8):
        keys.add("a")
        time.now += 100
        assert keys.take() == "a"
        delays.append(keys.failed("a"))
    assert delays == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    time.now += 100
    assert keys.take() == "a"
    keys.done("a")
    assert keys.failures("a") == 0


def test_a_server_that_says_when_is_obeyed() -> None:
    """`at_least` wins over a shorter delay."""
    keys, time = queue()
    keys.add("a")
    keys.take()
    assert keys.failed("a", at_least=9.0) == 9.0
    time.now = 8.9
    assert keys.take() is None
    time.now = 9.0
    assert keys.take() == "a"


def test_jitter_only_shortens_and_at_most_by_half() -> None:
    """Delays of many keys spread over the second half of the ceiling."""
    assert Backoff(first=1, longest=60, chance=lambda: 1.0).delay(3) == 2.0
    assert Backoff(first=1, longest=60, chance=lambda: 0.0).delay(3) == 4.0


STEPS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from([0.0, 0.05, 1.0])),
    st.tuples(st.just("sleep"), st.just(""), st.sampled_from([0.01, 0.1, 0.5, 2.0])),
    st.tuples(st.just("take"), st.just(""), st.just(0.0)),
    st.tuples(st.sampled_from(["done", "failed", "again"]), st.sampled_from("abc"), st.sampled_from([0.0, 0.3])),
)


class History:
    """Plays steps on a queue and checks what must hold at every start."""

    def __init__(self) -> None:
        self.keys, self.time = queue()
        self.working: set[str] = set()
        self.started: dict[str, float] = {}
        self.owed: set[str] = set()

    def take(self) -> str | None:
        key = self.keys.take()
        if key is not None:
            assert key not in self.working
            assert self.time.now >= self.started.get(key, -1e9) + SPACING
            self.working.add(key)
            self.started[key] = self.time.now
            self.owed.discard(key)
        return key

    def play(self, action: str, key: str, seconds: float) -> None:
        if action == "add":
            self.keys.add(key, seconds)
            self.owed.add(key)
        elif action == "sleep":
            self.time.now += seconds
        elif action == "take":
            self.take()
        elif key in self.working:
            self.end(action, key, seconds)

    def end(self, action: str, key: str, seconds: float = 0.0) -> None:
        self.working.discard(key)
        if action == "done":
            self.keys.done(key)
        else:
            self.owed.add(key)
            (self.keys.failed if action == "failed" else self.keys.again)(key, seconds)

    def drain(self) -> None:
        for key in sorted(self.working):
            self.end("done", key)
        while (wait := self.keys.wait()) is not None:
            self.time.now += wait + 1e-6
            if (taken := self.take()) is not None:
                self.end("done", taken)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_any_history_keeps_the_promises(steps: list[tuple[str, str, float]]) -> None:
    """One worker per key, starts apart by the spacing, and every addition is followed by a run."""
    history = History()
    for step in steps:
        history.play(*step)
    history.drain()
    assert not history.owed
    assert len(history.keys) == 0
