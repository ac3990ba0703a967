"""AuditService: lists and shows records, filtered in SQL by where the caller may read audit."""

from __future__ import annotations

from typing import Any

from google.protobuf.json_format import ParseDict

from kubegems.audit.v1 import audit_event_pb2, audit_service_pb2
from libs import pg
from libs.audit import store
from libs.pg import lists
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.gateway.audit.domain import event_id, event_name, missing

_LIST, _GET = "audit.events.list", "audit.events.get"


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
        where = lists.Where()
        store.visible(where, call.caller.rights.scopes(_LIST))
        found = await lists.read(await pg.tx(call), self._pages, call, request, source=store.SOURCE, where=where)
        shown = [_event(row) for row in found.rows]
        return audit_service_pb2.ListAuditEventsResponse(audit_events=shown, next_page_token=found.token)

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
