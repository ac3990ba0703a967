"""When a schedule is due: pure time, no database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from libs.faults import Invalid, Violation

MOST_MISSED = 100
GRACE = timedelta(seconds=60)  # a start that is later than this was missed


class BadTimetable(Invalid):
    """The cron or time zone cannot be understood."""

    reason = "BAD_TIMETABLE"


@dataclass(frozen=True, slots=True)
class Timetable:
    """Either an interval or a cron in a time zone, with jitter.

    Attributes:
        name: of the schedule; jitter is drawn from it and the time, so that every replica draws the same.
        interval: between two times, counted from one another; None for cron.
        cron: five fields.
        zone: IANA name.
        jitter: longest delay of a start.
    """

    name: str
    interval: timedelta | None
    cron: str = ""
    zone: str = "UTC"
    jitter: timedelta = timedelta()

    def check(self) -> None:
        """Raises BadTimetable for what cannot be understood."""
        if (self.interval is None) == (not self.cron):
            raise BadTimetable.fields([Violation("schedule.cron", "give either `cron` or `interval_seconds`")])
        try:
            ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise BadTimetable.fields([Violation("schedule.time_zone", f"{self.zone!r} is no IANA time zone")]) from error
        if self.cron:
            try:
                self.after(datetime.now(UTC))
            except (CronSimError, StopIteration) as error:
                raise BadTimetable.fields([Violation("schedule.cron", f"{self.cron!r}: {error or 'never comes true'}")]) from error

    def after(self, time: datetime) -> datetime:
        """The first time that is due after another. An hour that the clock skips runs when it is over; one that comes twice, once."""
        if self.interval is not None:
            return time + self.interval
        if len(self.cron.split()) != 5:  # noqa: PLR2004 -- minute, hour, day, month, weekday
            raise CronSimError("five fields are needed")
        return next(CronSim(self.cron.upper(), time.astimezone(ZoneInfo(self.zone)))).astimezone(UTC)

    def start(self, due: datetime) -> datetime:
        """When the jobs of a time start: the time and its jitter, which is less than the way to the next."""
        if not self.jitter:
            return due
        digest = hashlib.sha256(f"{self.name} {due.isoformat()}".encode()).digest()
        fraction = int.from_bytes(digest[:8], "big") / 2**64
        return due + min(self.jitter, self.after(due) - due - timedelta(seconds=1)) * fraction

    def missed(self, due: datetime, now: datetime) -> Iterator[datetime]:
        """Times after `due` that have passed as well, at most 100, oldest first."""
        for _ in range(MOST_MISSED):
            due = self.after(due)
            if due > now:
                return
            yield due

    def ahead(self, due: datetime, now: datetime) -> datetime:
        """The first time after `due` that lies ahead."""
        if self.interval is not None:
            steps = max((now - due) // self.interval, 0)
            return due + self.interval * (steps + 1)
        return self.after(max(due, now))
