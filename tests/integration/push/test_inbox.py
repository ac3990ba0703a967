"""Inbox and notices: stored once by the outbox id, delivered live, read state per reader, windows of announcements."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from kubegems.jobs.v1.events_pb2 import JobMoved
from kubegems.messages.v1 import announcement_service_pb2, event_pb2, events_pb2, inbox_pb2, inbox_service_pb2, message_service_pb2
from libs.bus import subjects
from libs.clock import new_id
from libs.faults import Invalid, NotFound
from libs.pg import Database, outbox
from services.msgbus import inbox_store
from tests.integration.push.rig import Rig

pytestmark = pytest.mark.timeout(120)
Event = event_pb2.Event
_Severity = inbox_pb2.InboxMessage.Severity


async def post(rig: Rig, title: str, *audiences: str, id_: UUID | None = None) -> UUID:
    """As an outbox's relay publishes it."""
    id_ = id_ or new_id()
    notice = events_pb2.NoticePosted(audiences=audiences, severity=_Severity.WARNING, category="QUOTA_DECIDED", title=title)
    await rig.bus.publish(subjects.notice("posted"), notice, id=str(id_))
    return id_


async def inbox(rig: Rig, user: str, **request: Any) -> list[inbox_pb2.InboxMessage]:
    """A user's messages."""
    reply = await rig.ask("ListInboxMessages", inbox_service_pb2.ListInboxMessagesRequest(parent=f"users/{user}", **request), user)
    return list(reply.messages)


async def titles(rig: Rig, user: str, **request: Any) -> list[str]:
    """Their titles, newest first."""
    return [message.title for message in await inbox(rig, user, **request)]


async def test_messages_reach_users_tenants_and_roles_and_nobody_else(rig: Rig, eventually: Any) -> None:
    """Each reader sees what is addressed to it; the stored copy and the live event are the same message."""
    rig.hub.grant("ann", audiences=("tenants/acme", "tenants/acme/roles/admin"))
    rig.hub.grant("bob", audiences=("tenants/acme",))
    rig.hub.grant("eve", audiences=("tenants/globex",))
    asked = message_service_pb2.SubscribeRequest(notices=True, no_changes=True)
    async with aclosing(rig.subscribe("ann", asked)) as live:
        assert (await anext(live)).kind == Event.SUBSCRIBED
        for title, audience in (("to ann", "users/ann"), ("to acme", "tenants/acme"), ("to admins", "tenants/acme/roles/admin")):
            await post(rig, title, audience)
            event = await anext(live)
            assert (event.kind, event.notice.title) == (Event.NOTICE, title)
            assert event.notice.name.startswith("users/ann/inbox/")
    await post(rig, "to globex", "tenants/globex")
    await eventually(lambda: titles(rig, "eve"), within=5)
    assert await titles(rig, "ann") == ["to admins", "to acme", "to ann"]
    assert await titles(rig, "bob") == ["to acme"]
    assert await titles(rig, "eve") == ["to globex"]
    rig.hub.grant("bob")  # no longer of acme
    assert await titles(rig, "bob") == []


async def test_an_event_that_comes_twice_is_one_message(rig: Rig, eventually: Any) -> None:
    """Past the broker's own window too: the id decides."""
    rig.hub.grant("tom")
    id_ = await post(rig, "once", "users/tom")
    await eventually(lambda: titles(rig, "tom"), within=5)
    twice = events_pb2.NoticePosted(audiences=["users/tom"], title="once")
    await rig.bus.hint(subjects.notice("posted"), twice)  # without an id it cannot be told from others: refused, not stored
    database = await Database.connect((rig.folder / "dsn").read_text(), application_name="test", max_size=1)
    async with database.transaction() as tx:
        assert not await inbox_store.add(tx, id_, ["users/tom"], ("INFO", "", "once", "", ""), datetime.now(UTC))
    await database.close()
    await post(rig, "after", "users/tom")
    await eventually(lambda: _has(rig, "tom", "after"), within=5)
    assert await titles(rig, "tom") == ["after", "once"]


async def _has(rig: Rig, user: str, title: str) -> bool:
    return title in await titles(rig, user)


async def test_an_outbox_row_of_any_service_becomes_a_message(rig: Rig, eventually: Any) -> None:
    """What commits with a change is delivered; what is rolled back is not."""
    rig.hub.grant("kim")
    database = await Database.connect((rig.folder / "dsn").read_text(), application_name="test", max_size=1)
    notice = events_pb2.NoticePosted(audiences=["users/kim"], title="committed")
    async with database.transaction() as tx:
        await outbox.publish(tx, "messages", subjects.notice("posted"), notice)
    transaction = await database.begin()
    await outbox.publish(
        transaction.tx, "messages", subjects.notice("posted"), events_pb2.NoticePosted(audiences=["users/kim"], title="no")
    )
    await transaction.rollback()
    await eventually(lambda: titles(rig, "kim"), within=5)
    assert await titles(rig, "kim") == ["committed"]
    await database.close()


async def test_the_end_of_a_job_is_a_message_to_who_started_it(rig: Rig, eventually: Any) -> None:
    """Progress is not, nor is a job that the platform started."""
    rig.hub.grant("joe")
    for state, creator in (("RUNNING", "users/joe"), ("FAILED", "users/joe"), ("SUCCEEDED", "services/worker")):
        moved = JobMoved(name="jobs/1", state=state, target="tenants/acme", creator=creator, message="boom")
        await rig.bus.publish(subjects.notice("jobs"), moved, id=str(new_id()))
    await eventually(lambda: titles(rig, "joe"), within=5)
    [message] = await inbox(rig, "joe")
    assert (message.category, message.severity, message.resource, message.body) == ("JOB_FAILED", _Severity.ERROR, "jobs/1", "boom")


async def test_read_state_counts_and_pages_are_the_readers_own(rig: Rig, eventually: Any) -> None:
    """Marking, deleting and paging change one inbox and no other's."""
    rig.hub.grant("pam", audiences=("tenants/initech",))
    rig.hub.grant("pat", audiences=("tenants/initech",))
    for i in range(5):
        await post(rig, f"m{i}", "tenants/initech")

    async def counts(user: str) -> tuple[int, int]:
        found = await rig.ask("CountInboxMessages", inbox_service_pb2.CountInboxMessagesRequest(parent=f"users/{user}"), user)
        return found.total, found.unread

    async def arrived() -> bool:
        return await counts("pam") == (5, 5)

    await eventually(arrived, within=5)
    first = await inbox(rig, "pam")
    mark = inbox_service_pb2.MarkInboxMessagesRequest(parent="users/pam", names=[first[0].name, first[1].name])
    assert (await rig.ask("MarkInboxMessages", mark, "pam")).changed == 2
    assert (await rig.ask("MarkInboxMessages", mark, "pam")).changed == 0
    assert (await counts("pam"), await counts("pat")) == ((5, 3), (5, 5))
    assert len(await titles(rig, "pam", unread=True)) == 3
    await rig.ask("DeleteInboxMessage", inbox_service_pb2.DeleteInboxMessageRequest(name=first[4].name), "pam")
    with pytest.raises(NotFound):
        await rig.ask("DeleteInboxMessage", inbox_service_pb2.DeleteInboxMessageRequest(name=first[4].name), "pam")
    assert (await counts("pam"), await counts("pat")) == ((4, 2), (5, 5))
    page = inbox_service_pb2.ListInboxMessagesRequest(parent="users/pat", page_size=2)
    seen: list[str] = []
    while True:
        reply = await rig.ask("ListInboxMessages", page, "pat")
        seen += [message.title for message in reply.messages]
        if not reply.next_page_token:
            break
        page.page_token = reply.next_page_token
    assert seen == ["m4", "m3", "m2", "m1", "m0"]
    everything = inbox_service_pb2.MarkInboxMessagesRequest(parent="users/pat")
    assert (await rig.ask("MarkInboxMessages", everything, "pat")).changed == 5
    with pytest.raises(Invalid):
        await rig.ask("MarkInboxMessages", inbox_service_pb2.MarkInboxMessagesRequest(parent="users/pat", names=[first[0].name]), "pat")


async def test_an_announcement_is_shown_in_its_window_and_told_when_it_begins(rig: Rig, eventually: Any) -> None:
    """Before: nothing; at its start: a live event and a message; one for a tenant is not for others; ended or removed: gone."""
    rig.hub.grant("sue", audiences=("tenants/acme",))
    rig.hub.grant("sam", audiences=("tenants/globex",))
    asked = message_service_pb2.SubscribeRequest(notices=True, no_changes=True)
    request = announcement_service_pb2.CreateAnnouncementRequest()
    request.announcement.title, request.announcement.audiences[:] = "maintenance", ["tenants/acme"]
    now = datetime.now(UTC)
    request.announcement.start_time.FromDatetime(now + timedelta(seconds=1.5))
    request.announcement.end_time.FromDatetime(now + timedelta(hours=1))

    async def shown(user: str) -> list[str]:
        reply = await rig.ask("ListAnnouncements", announcement_service_pb2.ListAnnouncementsRequest(), user)
        return [announcement.title for announcement in reply.announcements]

    async with aclosing(rig.subscribe("sue", asked)) as live:
        assert (await anext(live)).kind == Event.SUBSCRIBED
        made = await rig.ask("CreateAnnouncement", request, "admin")
        assert await shown("sue") == []
        event = await anext(live)
        assert (event.kind, event.notice.title, event.notice.category) == (Event.NOTICE, "maintenance", "ANNOUNCEMENT")
        assert datetime.now(UTC) >= now + timedelta(seconds=1.5)
    assert (await shown("sue"), await shown("sam")) == (["maintenance"], [])
    assert "maintenance" in await titles(rig, "sue")
    await rig.ask("DeleteAnnouncement", announcement_service_pb2.DeleteAnnouncementRequest(name=made.name), "admin")
    assert await shown("sue") == []
    assert "maintenance" not in await titles(rig, "sue")
    request.announcement.end_time.FromDatetime(now - timedelta(hours=1))
    with pytest.raises(Invalid):
        await rig.ask("CreateAnnouncement", request, "admin")


async def test_old_messages_are_forgotten(rig: Rig) -> None:
    """Retention takes what is older than its days, and leaves the rest."""
    database = await Database.connect((rig.folder / "dsn").read_text(), application_name="test", max_size=1)
    async with database.transaction() as tx:
        for age in (1, 100):
            created = datetime.now(UTC) - timedelta(days=age)
            assert await inbox_store.add(tx, new_id(), ["users/old"], ("INFO", "", f"{age} days", "", ""), created)
        assert await inbox_store.sweep(tx, 90) == 1
        rows = await inbox_store.page(tx, "old", ["users/old"], unread=False, where=("true", []), limit=10)
    assert [row["title"] for row in rows] == ["1 days"]
    await database.close()
