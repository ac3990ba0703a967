"""Users and sessions as messages, and resource names taken apart."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from kubegems.identity.v1 import session_pb2, user_pb2
from libs.faults import NotFound
from libs.pg import etag
from libs.rpc.authorisation import missing
from services.gateway.identity.domain import PlatformRole, Session, User

_ROLES = user_pb2.User.PlatformRole


def user_message(user: User) -> user_pb2.User:
    """A user as the API shows it."""
    return user_pb2.User(
        name=f"users/{user.username}",
        uid=str(user.uid),
        display_name=user.display_name,
        email=user.email,
        state=user_pb2.User.State.Value(user.state.value),
        platform_role=_ROLES.Value(user.platform_role.value),
        etag=etag(user.version),
        create_time=timestamp(user.created),
        update_time=timestamp(user.updated),
    )


def session_message(session: Session) -> session_pb2.Session:
    """A session as the API shows it."""
    return session_pb2.Session(
        name=session_name(session),
        create_time=timestamp(session.created),
        expire_time=timestamp(session.expires),
        refresh_time=timestamp(session.refreshed),
        address=session.address,
        user_agent=session.user_agent,
    )


def session_name(session: Session) -> str:
    """`users/{user}/sessions/{session}`."""
    return f"users/{session.username}/sessions/{session.id}"


def platform_role(role: user_pb2.User.PlatformRole.ValueType) -> PlatformRole:
    """A role that a request names; USER when it names none."""
    return PlatformRole(_ROLES.Name(role)) if role else PlatformRole.USER


def username_of(name: str) -> str:
    """`dev` of `users/dev` and of `users/dev/sessions/…`."""
    return name.split("/")[1]


def session_of(name: str) -> UUID:
    """The id of `users/dev/sessions/{id}`; NotFound when it cannot be one."""
    try:
        return UUID(name.rsplit("/", 1)[-1])
    except ValueError as error:
        raise no_such_session(name) from error


def session_id(text: str) -> UUID | None:
    """A session's id as a caller carries it; None when it has none."""
    return UUID(text) if text else None


def no_such_session(name: str) -> NotFound:
    """The fault for a session that is not there, or has ended."""
    return missing(name)


def timestamp(time: datetime) -> Timestamp:
    """An aware time on the wire."""
    found = Timestamp()
    found.FromDatetime(time)
    return found
