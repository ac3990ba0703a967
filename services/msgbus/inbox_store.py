"""SQL of messages and announcements, as functions over a Tx."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.pg import Record, Tx

SCHEMA = "messages"


async def add(tx: Tx, notice: UUID, audiences: Collection[str], row: Sequence[Any], created: datetime) -> bool:
    """Stores a message; False when it is there already. `row`: severity, category, title, body, resource."""
    if not await tx.execute(_ADD, notice, *row, created):
        return False
    await tx.execute(_ADDRESS, sorted(set(audiences)), created, notice)
    return True


async def page(tx: Tx, username: str, audiences: Sequence[str], *, unread: bool, where: tuple[str, list[Any]], limit: int) -> list[Record]:
    """A user's messages, newest first."""
    condition, args = where
    return await tx.rows(_PAGE.format(where=condition), username, audiences, unread, limit, *args)


async def counts(tx: Tx, username: str, audiences: Sequence[str]) -> Record:
    """`total`, `unread` and `errors` of a user."""
    row = await tx.row(_COUNTS, username, audiences)
    assert row is not None
    return row


async def mark(tx: Tx, username: str, audiences: Sequence[str], notices: Sequence[UUID] | None, *, read: bool) -> int:
    """Marks some messages, or all, as read or unread; how many changed."""
    return await tx.execute(_MARK, username, audiences, notices, read)


async def hide(tx: Tx, username: str, audiences: Sequence[str], notice: UUID) -> bool:
    """Takes a message out of one inbox; whether it was there."""
    return bool(await tx.execute(_HIDE, username, audiences, notice))


async def announce(tx: Tx, row: Sequence[Any]) -> None:
    """Adds an announcement: id, severity, title, body, audiences, starts, ends, created, creator."""
    await tx.execute(_ANNOUNCE, *row)


async def announcements(tx: Tx, audiences: Sequence[str], *, everything: bool, where: tuple[str, list[Any]], limit: int) -> list[Record]:
    """Announcements, newest first: those shown now to some audiences, or all there are."""
    condition, args = where
    return await tx.rows(_ANNOUNCEMENTS.format(where=condition), everything, audiences, limit, *args)


async def remove_announcement(tx: Tx, announcement: UUID) -> bool:
    """Removes an announcement and the message that it became; whether it was there."""
    await tx.execute("DELETE FROM messages.notices WHERE id = $1", announcement)
    return bool(await tx.execute("DELETE FROM messages.announcements WHERE id = $1", announcement))


async def begun(tx: Tx) -> list[Record]:
    """Announcements whose time has begun and that nobody was told of yet; they count as told now."""
    return await tx.rows(_BEGUN)


async def sweep(tx: Tx, days: int) -> int:
    """Forgets what is older than some days, a part at a time; how much."""
    gone = await tx.execute(_SWEEP_NOTICES, days)
    return gone + await tx.execute(_SWEEP_ANNOUNCEMENTS, days)


_ADD = """
INSERT INTO messages.notices (id, severity, category, title, body, resource, created) VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (id) DO NOTHING
"""
_ADDRESS = "INSERT INTO messages.addressed (audience, created, notice) SELECT unnest($1::text[]), $2, $3"
_MINE = """
SELECT DISTINCT ON (a.created, a.notice) a.notice, a.created, a.audience, coalesce(s.read, false) AS read
  FROM messages.addressed a LEFT JOIN messages.states s ON s.notice = a.notice AND s.username = $1
 WHERE a.audience = ANY($2::text[]) AND NOT coalesce(s.hidden, false)
"""
_PAGE = f"""
SELECT n.id, n.severity, n.category, n.title, n.body, n.resource, n.created, m.audience, m.read
  FROM ({_MINE} AND ($3 = false OR NOT coalesce(s.read, false)) AND {{where}}
        ORDER BY a.created DESC, a.notice DESC, a.audience LIMIT $4) m
  JOIN messages.notices n ON n.id = m.notice
 ORDER BY n.created DESC, n.id DESC
"""
_COUNTS = f"""
SELECT count(*) AS total, count(*) FILTER (WHERE NOT m.read) AS unread,
       count(*) FILTER (WHERE NOT m.read AND n.severity = 'ERROR') AS errors
  FROM ({_MINE}) m JOIN messages.notices n ON n.id = m.notice
"""
_MARK = """
INSERT INTO messages.states AS s (username, notice, read)
SELECT DISTINCT $1, a.notice, $4::boolean FROM messages.addressed a
  LEFT JOIN messages.states t ON t.notice = a.notice AND t.username = $1
 WHERE a.audience = ANY($2::text[]) AND ($3::uuid[] IS NULL OR a.notice = ANY($3))
   AND NOT coalesce(t.hidden, false) AND coalesce(t.read, false) <> $4
ON CONFLICT (username, notice) DO UPDATE SET read = $4
"""
_HIDE = """
INSERT INTO messages.states AS s (username, notice, hidden)
SELECT DISTINCT $1, a.notice, true FROM messages.addressed a
 WHERE a.audience = ANY($2::text[]) AND a.notice = $3
ON CONFLICT (username, notice) DO UPDATE SET hidden = true WHERE NOT s.hidden
"""
_COLUMNS = "id, severity, title, body, audiences, starts, ends, created, creator"
_ANNOUNCE = f"INSERT INTO messages.announcements ({_COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_ANNOUNCEMENTS = f"""
SELECT {_COLUMNS} FROM messages.announcements
 WHERE ($1 OR (audiences && $2::text[] AND starts <= now() AND (ends IS NULL OR ends > now()))) AND {{where}}
 ORDER BY created DESC, id DESC LIMIT $3
"""
_BEGUN = f"""
UPDATE messages.announcements SET told = true
 WHERE id IN (SELECT id FROM messages.announcements WHERE NOT told AND starts <= now() ORDER BY starts LIMIT 100 FOR UPDATE SKIP LOCKED)
RETURNING {_COLUMNS}, (ends IS NULL OR ends > now()) AS shown
"""
_SWEEP_NOTICES = """
DELETE FROM messages.notices WHERE id IN
 (SELECT id FROM messages.notices WHERE created < now() - make_interval(days => $1) LIMIT 2000)
"""
_SWEEP_ANNOUNCEMENTS = """
DELETE FROM messages.announcements WHERE id IN
 (SELECT id FROM messages.announcements WHERE ends < now() - make_interval(days => $1) LIMIT 2000)
"""
