"""ScheduleService: parse, one transaction, answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format

from kubegems.jobs.v1 import schedule_pb2, schedule_service_pb2
from libs import pg
from libs.faults import Violation
from libs.jobs import schedule
from libs.jobs.clockwork import Clockwork
from libs.jobs.kind import Kind
from libs.jobs.schedule import Row
from libs.pg import Tx, check_etag, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.worker import messages
from services.worker.domain import BuiltInSchedule, ScheduleExists, ScheduleNotFound, UnknownKind

_CHANGEABLE = ("cron", "interval_seconds", "time_zone", "jitter_seconds", "missed_runs", "disabled", "payload")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Schedules:
    """kubegems.jobs.v1.ScheduleService."""

    def __init__(self, kinds: Mapping[str, Kind], clockwork: Clockwork, pages: Pages) -> None:
        self._kinds = kinds
        self._clockwork = clockwork
        self._pages = pages

    async def ListSchedules(
        self, request: schedule_service_pb2.ListSchedulesRequest, call: Call
    ) -> schedule_service_pb2.ListSchedulesResponse:
        """Lists the schedules, by name."""
        found = await lists.read(await pg.tx(call), self._pages, call, request, source=schedule.SOURCE)
        shown = [messages.schedule(schedule.row_of(row)) for row in found.rows]
        return schedule_service_pb2.ListSchedulesResponse(schedules=shown, next_page_token=found.token)

    async def GetSchedule(self, request: schedule_service_pb2.GetScheduleRequest, call: Call) -> schedule_pb2.Schedule:
        """Returns a schedule."""
        return messages.schedule(await _found(await pg.tx(call), request.name))

    async def RunSchedule(self, request: schedule_service_pb2.RunScheduleRequest, call: Call) -> schedule_service_pb2.RunScheduleResponse:
        """Starts a schedule's jobs now."""
        tx = await pg.tx(call)
        row = await _found(tx, request.name, lock=True)
        jobs = await self._clockwork.run_now(tx, row, f"{call.caller.name} {call.request_id}")
        return schedule_service_pb2.RunScheduleResponse(jobs=jobs)

    async def CreateSchedule(self, request: schedule_service_pb2.CreateScheduleRequest, call: Call) -> schedule_pb2.Schedule:
        """Makes a schedule of the caller's: its jobs have the caller's rights."""
        wanted = request.schedule
        kind = self._kinds.get(wanted.kind)
        if kind is None or not kind.fits(wanted.target):
            known = ", ".join(sorted(self._kinds))
            raise UnknownKind.fields(
                [Violation("schedule.kind", f"no kind of job fits: {wanted.kind!r} on {wanted.target!r}; known: {known}")]
            )
        row = self._row(request.schedule_id, wanted, call.caller.name)
        row.timetable.check()
        made = await schedule.create(await pg.tx(call), row)
        if made is None:
            raise ScheduleExists(f"schedules/{row.name} is there already")
        call.resources.append(f"schedules/{row.name}")
        return messages.schedule(made)

    def _row(self, name: str, wanted: schedule_pb2.Schedule, owner: str) -> Row:
        return Row(
            name=name, kind=wanted.kind, interval_seconds=wanted.interval_seconds or None, cron=wanted.cron,
            time_zone=wanted.time_zone or "UTC", jitter_seconds=wanted.jitter_seconds, missed_runs=_missed(wanted),
            disabled=wanted.disabled, target=wanted.target, payload=self._payload(wanted.kind, wanted), owner=owner, built_in=False,
            version=1, due_time=None, next_time=_EPOCH, last_time=None,
        )  # fmt: skip

    def _payload(self, kind: str, wanted: schedule_pb2.Schedule) -> dict[str, Any]:
        given = json_format.MessageToDict(wanted.payload)
        if kind in self._kinds:
            self._kinds[kind].parse(given, strict=True)
        return given

    async def UpdateSchedule(self, request: schedule_service_pb2.UpdateScheduleRequest, call: Call) -> schedule_pb2.Schedule:
        """Changes a schedule."""
        tx, wanted = await pg.tx(call), request.schedule
        row = await _found(tx, wanted.name, lock=True)
        check_etag(wanted.etag, row.version)
        paths = list(request.update_mask.paths) or [name for name in _CHANGEABLE if getattr(wanted, name)]
        wrong = [path for path in paths if path not in _CHANGEABLE]
        if wrong:
            raise UnknownKind.fields([Violation("update_mask", f"{', '.join(wrong)} cannot be changed; {', '.join(_CHANGEABLE)} can")])
        if row.built_in and set(paths) - {"disabled"}:
            raise BuiltInSchedule(f"{wanted.name} comes with the release: only `disabled` can be changed")
        changed = self._row(row.name, wanted, row.owner)
        values = {path: getattr(changed, path) for path in paths}
        if "payload" in values:
            values["payload"] = self._payload(row.kind, wanted)
        if values.get("cron"):
            values.setdefault("interval_seconds", None)
        elif values.get("interval_seconds"):
            values.setdefault("cron", "")
        made = dataclasses.replace(row, **values)
        made.timetable.check()
        return messages.schedule(await schedule.update(tx, made))

    async def DeleteSchedule(
        self, request: schedule_service_pb2.DeleteScheduleRequest, call: Call
    ) -> schedule_service_pb2.DeleteScheduleResponse:
        """Removes a schedule."""
        tx = await pg.tx(call)
        row = await _found(tx, request.name, lock=True)
        check_etag(request.etag, row.version)
        if row.built_in:
            raise BuiltInSchedule(f"{request.name} comes with the release and cannot be deleted; disable it")
        await schedule.delete(tx, row.name)
        return schedule_service_pb2.DeleteScheduleResponse()

    async def ListScheduleRuns(
        self, request: schedule_service_pb2.ListScheduleRunsRequest, call: Call
    ) -> schedule_service_pb2.ListScheduleRunsResponse:
        """Lists the runs of a schedule, newest first."""
        tx = await pg.tx(call)
        row = await _found(tx, request.parent)
        where = lists.Where()
        where.add("schedule = {}", row.name)
        found = await lists.read(tx, self._pages, call, request, source=schedule.FIRINGS, where=where)
        shown = [messages.run(schedule.Firing(*firing.values())) for firing in found.rows]
        return schedule_service_pb2.ListScheduleRunsResponse(runs=shown, next_page_token=found.token)


def _missed(wanted: schedule_pb2.Schedule) -> str:
    name: str = schedule_pb2.Schedule.MissedRuns.Name(wanted.missed_runs)
    return "ONCE" if name == "MISSED_RUNS_UNSPECIFIED" else name


async def _found(tx: Tx, name: str, *, lock: bool = False) -> Row:
    row = await schedule.get(tx, name.removeprefix("schedules/"), lock=lock)
    if row is None:
        raise ScheduleNotFound(f"there is no {name}")
    return row
