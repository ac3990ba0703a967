"""Schedules: cron and time zones, jitter, missed runs, one firing across replicas, history."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from libs.faults import Invalid, Unavailable
from libs.jobs import schedule
from libs.jobs.clockwork import Clockwork
from libs.jobs.schedule import Schedule
from libs.jobs.tests.conftest import Desk
from libs.jobs.tests.test_engine import nothing
from libs.jobs.timetable import Timetable


def test_cron_is_read_in_its_time_zone() -> None:
    """02:30 in Berlin is 00:30 or 01:30 UTC; skipped by the change to summer time it runs at 03:30's instant, doubled it runs once."""
    table = Timetable("x", None, "30 2 * * *", "Europe/Berlin")
    assert table.after(datetime(2026, 7, 1, tzinfo=UTC)) == datetime(2026, 7, 1, 0, 30, tzinfo=UTC)
    assert table.after(datetime(2026, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, 1, 30, tzinfo=UTC)
    spring = table.after(datetime(2026, 3, 28, 12, tzinfo=UTC))
    assert spring == datetime(2026, 3, 29, 1, 0, tzinfo=UTC) or spring == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    autumn = table.after(datetime(2026, 10, 24, 12, tzinfo=UTC))
    assert autumn.date().isoformat() == "2026-10-25"
    assert table.after(autumn).date().isoformat() == "2026-10-26"


@pytest.mark.parametrize("wrong", ["x", "61 * * * *", "* * * * * *", "0 0 31 2 *"])
def test_nonsense_is_refused(wrong: str) -> None:
    """A cron that cannot be read or never comes true, an unknown zone, both or none of interval and cron."""
    with pytest.raises(Invalid):
        Timetable("x", None, wrong).check()
    with pytest.raises(Invalid):
        Timetable("x", None, "* * * * *", "Mars/Olympus").check()
    with pytest.raises(Invalid):
        Timetable("x", timedelta(seconds=5), "* * * * *").check()
    with pytest.raises(Invalid):
        Timetable("x", None).check()
    Timetable("x", None, "30 2 * * mon-fri", "Europe/Berlin").check()


def test_jitter_is_the_same_on_every_replica_and_stays_before_the_next() -> None:
    """It is drawn from name and time."""
    due = datetime(2026, 7, 1, tzinfo=UTC)
    table = Timetable("x", timedelta(minutes=1), jitter=timedelta(hours=1))
    assert table.start(due) == table.start(due)
    starts = {Timetable(f"s{n}", timedelta(minutes=1), jitter=timedelta(hours=1)).start(due) for n in range(50)}
    assert len(starts) > 40
    assert all(due <= start < due + timedelta(minutes=1) for start in starts)


def _clockwork(desk: Desk, *schedules: Schedule) -> Clockwork:
    desk.kind(nothing)
    return Clockwork(desk.database, desk.known, schedules)


async def _targets() -> Sequence[str]:
    return ["clusters/a", "clusters/b"]


async def test_replicas_fire_each_time_exactly_once(desk: Desk) -> None:
    """Five look at the clock at the same time; one firing, one job per target, a line of history."""
    made = [_clockwork(desk, Schedule(name="s", kind="count", interval=timedelta(seconds=60), targets=_targets)) for _ in range(5)]
    await made[0].publish()
    for offset in (0, 61, 122):
        await desk.clock(offset)
        assert sum(await asyncio.gather(*(clockwork.once() for clockwork in made))) == 1
        await desk.work()
    assert await desk.sql("SELECT count(*) FROM jobs.jobs WHERE creator = 'schedules/s'") == 6
    async with desk.database.transaction() as tx:
        history = await schedule.firings(tx, "s", limit=10)
    assert [(f.outcome, f.jobs) for f in history] == [("STARTED", 2)] * 3


async def test_a_target_whose_last_job_has_not_ended_is_passed_over(desk: Desk) -> None:
    """A slow cluster does not collect jobs."""
    clockwork = _clockwork(desk, Schedule(name="s", kind="count", interval=timedelta(seconds=60), targets=_targets))
    await clockwork.publish()
    await clockwork.once()
    await desk.clock(61)
    await clockwork.once()
    assert await desk.sql("SELECT count(*) FROM jobs.jobs") == 2


@pytest.mark.parametrize(("policy", "started", "skipped"), [("SKIP", 0, 6), ("ONCE", 1, 5), ("ALL", 6, 0)])
async def test_what_was_missed_is_made_up_for_as_the_policy_says(desk: Desk, policy: str, started: int, skipped: int) -> None:
    """No worker was there for five and a half hours; the history tells what became of each time."""
    clockwork = _clockwork(desk, Schedule(name="s", kind="count", interval=timedelta(hours=1), targets=_targets, missed=policy))
    await clockwork.publish()
    await desk.clock(5.5 * 3600)
    assert await clockwork.once() == started
    async with desk.database.transaction() as tx:
        outcomes = [f.outcome for f in await schedule.firings(tx, "s", limit=20)]
    assert (outcomes.count("STARTED"), outcomes.count("SKIPPED")) == (started, skipped)
    assert await clockwork.once() == 0
    await desk.clock(6.01 * 3600)
    assert await clockwork.once() == 1


async def test_a_clock_that_was_ahead_does_not_silence_a_schedule(desk: Desk) -> None:
    """Set back, it fires at once and goes on at its interval."""
    clockwork = _clockwork(desk, Schedule(name="s", kind="count", interval=timedelta(seconds=60), targets=_targets))
    await desk.clock(5 * 3600)
    await clockwork.publish()
    assert await clockwork.once() == 1
    await desk.clock(0)
    assert await clockwork.once() == 1
    assert await clockwork.once() == 0


@pytest.mark.parametrize("fresh", [False, True])
async def test_a_cron_is_on_time_after_the_clock_was_set_back(desk: Desk, fresh: bool) -> None:
    """Each time of the day fires once, also when the clock comes to it again, and whether or not the process saw the clock jump."""
    made = Schedule(name="s", kind="count", cron="0 * * * *", targets=_targets)
    clockwork = _clockwork(desk, made)
    noon = datetime(2027, 1, 5, 12, tzinfo=UTC)
    await _clock(desk, noon - timedelta(minutes=30))
    await clockwork.publish()
    fired = []
    for minutes in (5 * 60, 1, 2, 61, 5 * 60 + 1, 5 * 60 + 2, 6 * 60 + 1):
        if fresh:
            clockwork = _clockwork(desk, made)
        await _clock(desk, noon + timedelta(minutes=minutes))
        fired.append(await clockwork.once())
        await desk.work()
    # at five once for all that was missed; set back to noon it waits for one o'clock; five comes again and is known
    assert fired == [1, 0, 0, 1, 1, 0, 1]
    times = await desk.sql("SELECT array_agg(due_time ORDER BY due_time) FROM jobs.firings WHERE outcome = 'STARTED'")
    assert times == [noon + timedelta(hours=hours) for hours in (1, 5, 6)]
    assert await desk.sql("SELECT count(*) FROM jobs.jobs") == 6


@pytest.mark.parametrize(
    ("before", "times"),
    [
        (datetime(2027, 3, 27, 23, tzinfo=UTC), [datetime(2027, 3, 28, 1, tzinfo=UTC), datetime(2027, 3, 29, 0, 30, tzinfo=UTC)]),
        (datetime(2027, 10, 30, 22, tzinfo=UTC), [datetime(2027, 10, 31, 0, 30, tzinfo=UTC), datetime(2027, 11, 1, 1, 30, tzinfo=UTC)]),
    ],
)
async def test_a_time_that_the_clock_skips_or_doubles_fires_once(desk: Desk, before: datetime, times: list[datetime]) -> None:
    """02:30 in Berlin through both changes of the clock, looked at every ten minutes for two days."""
    clockwork = _clockwork(desk, Schedule(name="s", kind="count", cron="30 2 * * *", zone="Europe/Berlin", targets=_targets))
    await _clock(desk, before)
    await clockwork.publish()
    for step in range(6 * 30):
        await _clock(desk, before + timedelta(minutes=10 * step, seconds=1))
        if await clockwork.once():
            await desk.work()
    assert await desk.sql("SELECT array_agg(due_time ORDER BY due_time) FROM jobs.firings WHERE outcome = 'STARTED'") == times
    assert await desk.sql("SELECT count(*) FROM jobs.jobs") == 4


async def _clock(desk: Desk, time: datetime) -> None:
    """The engine's clock stands at a time."""
    await desk.sql(
        f"CREATE OR REPLACE FUNCTION jobs.clock() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT '{time.isoformat()}'::timestamptz $$"
    )


async def test_a_disabled_schedule_does_nothing_until_it_is_run_by_hand(desk: Desk) -> None:
    """Run now works either way and is in the history."""
    clockwork = _clockwork(desk, Schedule(name="s", kind="count", interval=timedelta(seconds=60), targets=_targets))
    await clockwork.publish()
    await desk.sql("UPDATE jobs.schedules SET disabled = true")
    assert await clockwork.once() == 0
    async with desk.database.transaction() as tx:
        row = await schedule.get(tx, "s")
        assert row is not None
        assert len(await clockwork.run_now(tx, row, "users/root 1")) == 2
        [firing] = await schedule.firings(tx, "s", limit=5)
    assert (firing.outcome, firing.jobs) == ("MANUAL", 2)
    await clockwork.publish()
    assert await desk.sql("SELECT disabled FROM jobs.schedules") is True


async def test_a_schedule_that_fails_or_is_unknown_here_keeps_no_other_waiting(desk: Desk) -> None:
    """A fault while finding targets is a line of history; another release's schedule is left to it."""

    async def away() -> Sequence[str]:
        raise Unavailable("offline")

    every = timedelta(seconds=60)
    clockwork = _clockwork(
        desk, Schedule(name="broken", kind="count", interval=every, targets=away),
        Schedule(name="fine", kind="count", interval=every, targets=_targets),
    )  # fmt: skip
    await clockwork.publish()
    await desk.sql("INSERT INTO jobs.schedules (name, kind, interval_seconds, built_in, target) VALUES ('foreign', 'x', 5, true, '')")
    await clockwork.once()
    assert await desk.sql("SELECT outcome FROM jobs.firings WHERE schedule = 'broken'") == "FAILED"
    assert await desk.sql("SELECT jobs FROM jobs.firings WHERE schedule = 'fine'") == 2
    assert await desk.sql("SELECT last_time FROM jobs.schedules WHERE name = 'foreign'") is None
