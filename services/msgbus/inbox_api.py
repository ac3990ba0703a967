"""InboxService and AnnouncementService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import UUID

from google.protobuf import empty_pb2

from kubegems.messages.v1 import announcement_pb2, announcement_service_pb2, inbox_pb2, inbox_service_pb2
from libs import pg
from libs.clock import Clock, new_id
from libs.faults import Invalid, NotFound
from libs.pg import Record
from libs.pg.paging import Pages
from libs.rpc.call import Call
from services.msgbus import inbox_store as store

Audiences = Callable[[str], Awaitable[list[str]]]
Severity = inbox_pb2.InboxMessage.Severity
_ORDER = ("created", "id")


class InboxService:
    """kubegems.messages.v1.InboxService: a user reads what is addressed to it now; a lost membership takes its messages with it.

    Args:
        pages: signs page tokens.
        audiences: of a user, as the gateway knows them.
    """

    def __init__(self, pages: Pages, audiences: Audiences) -> None:
        self._pages = pages
        self._audiences = audiences

    async def ListInboxMessages(
        self, request: inbox_service_pb2.ListInboxMessagesRequest, call: Call
    ) -> inbox_service_pb2.ListInboxMessagesResponse:
        """A page, newest first."""
        user = _user(request.parent)
        audiences = await self._audiences(user)
        page = self._pages.open(call, request, order=_ORDER)
        where = page.where(("a.created", "a.notice"), first_parameter=5, descending=True)
        tx = await pg.tx(call)
        rows, token = page.close(
            await store.page(tx, user, audiences, unread=request.unread, where=where, limit=page.limit), lambda r: (r["created"], r["id"])
        )
        return inbox_service_pb2.ListInboxMessagesResponse(messages=[_message(user, row) for row in rows], next_page_token=token)

    async def CountInboxMessages(
        self, request: inbox_service_pb2.CountInboxMessagesRequest, call: Call
    ) -> inbox_service_pb2.CountInboxMessagesResponse:
        """The counts of now."""
        user = _user(request.parent)
        row = await store.counts(await pg.tx(call), user, await self._audiences(user))
        return inbox_service_pb2.CountInboxMessagesResponse(total=row["total"], unread=row["unread"], unread_errors=row["errors"])

    async def MarkInboxMessages(
        self, request: inbox_service_pb2.MarkInboxMessagesRequest, call: Call
    ) -> inbox_service_pb2.MarkInboxMessagesResponse:
        """Marks them; INVALID_ARGUMENT for a message of another's inbox."""
        user = _user(request.parent)
        prefix = f"{request.parent}/inbox/"
        if foreign := [name for name in request.names if not name.startswith(prefix)]:
            raise Invalid.one("names", f"{foreign[0]} is not in {request.parent}/inbox")
        notices = [_uuid(name) for name in request.names] if request.names else None
        audiences = await self._audiences(user)
        changed = await store.mark(await pg.tx(call), user, audiences, notices, read=not request.unread)
        return inbox_service_pb2.MarkInboxMessagesResponse(changed=changed)

    async def DeleteInboxMessage(self, request: inbox_service_pb2.DeleteInboxMessageRequest, call: Call) -> empty_pb2.Empty:
        """Takes it out of this inbox; NotFound."""
        user = request.name.split("/")[1]
        audiences = await self._audiences(user)
        if not await store.hide(await pg.tx(call), user, audiences, _uuid(request.name)):
            raise NotFound(f"{request.name} does not exist", {"resource_name": request.name})
        return empty_pb2.Empty()


class AnnouncementService:
    """kubegems.messages.v1.AnnouncementService.

    Args:
        pages: signs page tokens.
        audiences: of a user.
        clock: the time.
    """

    def __init__(self, pages: Pages, audiences: Audiences, clock: Clock) -> None:
        self._pages = pages
        self._audiences = audiences
        self._clock = clock

    async def CreateAnnouncement(
        self, request: announcement_service_pb2.CreateAnnouncementRequest, call: Call
    ) -> announcement_pb2.Announcement:
        """Makes one; INVALID_ARGUMENT for a window that ends before it begins or has ended."""
        given, now = request.announcement, self._clock.now()
        starts = given.start_time.ToDatetime(now.tzinfo) if given.HasField("start_time") else now
        ends = given.end_time.ToDatetime(now.tzinfo) if given.HasField("end_time") else None
        if ends is not None and ends <= max(starts, now):
            raise Invalid.one("announcement.end_time", "must lie after the start and in the future")
        severity = Severity.Name(given.severity or Severity.INFO)
        audiences = sorted(set(given.audiences)) or ["platform"]
        id_ = new_id()
        tx = await pg.tx(call)
        row = (id_, severity, given.title, given.body, audiences, starts, ends, now, call.caller.name)
        await store.announce(tx, row)
        call.resources.append(f"announcements/{id_}")
        return _announcement(dict(zip(_FIELDS, row, strict=True)))

    async def ListAnnouncements(
        self, request: announcement_service_pb2.ListAnnouncementsRequest, call: Call
    ) -> announcement_service_pb2.ListAnnouncementsResponse:
        """A page, newest first."""
        everything = call.caller.rights.scopes(call.method.rule.permission).everything
        audiences = [] if everything else await self._audiences(call.caller.id)
        page = self._pages.open(call, request, order=_ORDER)
        where = page.where(_ORDER, first_parameter=4, descending=True)
        found = await store.announcements(await pg.tx(call), audiences, everything=everything, where=where, limit=page.limit)
        rows, token = page.close(found, lambda r: (r["created"], r["id"]))
        shown = [_announcement(dict(row)) for row in rows]
        return announcement_service_pb2.ListAnnouncementsResponse(announcements=shown, next_page_token=token)

    async def DeleteAnnouncement(self, request: announcement_service_pb2.DeleteAnnouncementRequest, call: Call) -> empty_pb2.Empty:
        """Removes it, from inboxes too; NotFound."""
        if not await store.remove_announcement(await pg.tx(call), _uuid(request.name)):
            raise NotFound(f"{request.name} does not exist", {"resource_name": request.name})
        return empty_pb2.Empty()


_FIELDS = ("id", "severity", "title", "body", "audiences", "starts", "ends", "created", "creator")


def _user(parent: str) -> str:
    return parent.removeprefix("users/")


def _uuid(name: str) -> UUID:
    try:
        return UUID(name.rsplit("/", 1)[-1])
    except ValueError as error:
        raise NotFound(f"{name} does not exist", {"resource_name": name}) from error


def _message(user: str, row: Record) -> inbox_pb2.InboxMessage:
    message = inbox_pb2.InboxMessage(
        name=f"users/{user}/inbox/{row['id']}",
        severity=Severity.Value(row["severity"]),
        category=row["category"],
        title=row["title"],
        body=row["body"],
        resource=row["resource"],
        audience=row["audience"],
        read=row["read"],
    )
    message.create_time.FromDatetime(row["created"])
    return message


def _announcement(row: dict[str, object]) -> announcement_pb2.Announcement:
    made = announcement_pb2.Announcement(
        name=f"announcements/{row['id']}",
        severity=Severity.Value(str(row["severity"])),
        title=str(row["title"]),
        body=str(row["body"]),
        audiences=row["audiences"],  # type: ignore[arg-type] # text[]
        creator=str(row["creator"]),
    )
    for field, column in (("start_time", "starts"), ("end_time", "ends"), ("create_time", "created")):
        if row[column] is not None:
            getattr(made, field).FromDatetime(row[column])
    return made
