"""AuditService: lists and shows records, filtered in SQL by where the caller may read audit."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict

from kubegems.audit.v1 import audit_event_pb2, audit_service_pb2
from libs import pg
from libs.audit import Outcome, store
from libs.pg import filters
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.audit.domain import event_id, event_name, missing

_LIST, _GET = "audit.events.list", "audit.events.get"
_FIELDS: dict[str, str | filters.Column] = {
    "actor": "e.actor",
    "method": "e.method",
    "tenant": "e.tenant",
    "outcome": filters.Column("e.outcome", values=tuple(Outcome)),
    "class": filters.Column("e.class", values=("READ", "WRITE", "SENSITIVE")),
    "trace_id": "e.trace_id",
    "request_id": "e.request_id",
    "resource": filters.Column("e.resources", "texts"),
    "time": filters.Column("e.time", "time"),
}
_FIRST = 3  # parameters 1 and 2 say which scopes the reader may see


class AuditService:
    """Answers kubegems.audit.v1.AuditService.

    Args:
        pages: signs page tokens.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    async def ListAuditEvents(
        self, request: audit_service_pb2.ListAuditEventsRequest, call: Call
    ) -> audit_service_pb2.ListAuditEventsResponse:
        """A page of records, newest first."""
        page = self._pages.open(call, request, order=("time", "id"))
        condition, args = filters.parse(request.filter, _FIELDS, first_parameter=_FIRST)
        behind, after = page.where(("e.time", "e.id"), first_parameter=_FIRST + len(args), descending=True)
        tx = await pg.tx(call)
        rows = await store.select(tx, call.caller.rights.scopes(_LIST), f"{condition} and {behind}", [*args, *after], page.limit)
        kept, token = page.close(rows, key=lambda row: (row["time"], row["id"]))
        return audit_service_pb2.ListAuditEventsResponse(audit_events=[_event(row) for row in kept], next_page_token=token)

    async def GetAuditEvent(self, request: audit_service_pb2.GetAuditEventRequest, call: Call) -> audit_event_pb2.AuditEvent:
        """One record."""
        tx = await pg.tx(call)
        row = await store.get(tx, call.caller.rights.scopes(_GET), event_id(request.name))
        if row is None:
            raise missing(request.name)
        return _event(row)


def _event(row: Any) -> audit_event_pb2.AuditEvent:
    event = audit_event_pb2.AuditEvent(
        name=event_name(row["id"]),
        outcome=audit_event_pb2.AuditEvent.Outcome.Value(row["outcome"]),
        **{name: row[name] for name in _SAME},
    )
    event.time.FromDatetime(row["time"])
    setattr(event, "class", row["class"])  # a keyword of Python, a field of the contract
    ParseDict(row["request"], event.request)
    return event


_SAME = (
    "actor", "actor_uid", "session", "method", "resources", "tenant", "code", "reason", "address", "user_agent", "trace_id",
    "request_id", "took_millis",
)  # fmt: skip
