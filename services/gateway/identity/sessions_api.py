"""SessionService: signing in, staying signed in, signing out."""

from __future__ import annotations

from typing import Any

from google.protobuf.empty_pb2 import Empty

from kubegems.identity.v1 import session_service_pb2 as pb
from libs import log, pg
from libs.clock import Clock, new_id
from libs.faults import Unauthenticated
from libs.pg import Database, lists
from libs.pg.paging import Pages
from libs.rpc.call import Call, Caller, Kind
from services.gateway.identity import domain, store, wire
from services.gateway.identity.domain import Session, User, UserState, WrongCredentials
from services.gateway.identity.passwords import Passwords
from services.gateway.identity.sign_in import SignIn
from services.gateway.identity.tokens import Tokens, new_refresh_token, refresh_hash

_LONGEST_AGENT = 256
_log = log.get("services.gateway.identity.sessions")


class RefreshRefused(Unauthenticated):
    """The refresh token is unknown, was used before, or its session has ended; which of these is not said."""

    reason = "REFRESH_REFUSED"

    def __init__(self) -> None:
        super().__init__("the refresh token is not valid (any more); sign in again")


class SessionService:
    """Serves `kubegems.identity.v1.SessionService`."""

    def __init__(self, *, database: Database, sign_in: SignIn, passwords: Passwords, tokens: Tokens, pages: Pages, clock: Clock) -> None:
        self._database = database
        self._sign_in = sign_in
        self._passwords = passwords
        self._tokens = tokens
        self._pages = pages
        self._clock = clock

    async def CreateSession(self, request: pb.CreateSessionRequest, call: Call) -> pb.CreateSessionResponse:
        """Signs in by password."""
        proved = await self._sign_in.prove(request.username, request.password, call.address)
        renewed = await self._passwords.hash(request.password) if self._passwords.outdated(proved.password_hash) else None
        tx = await pg.tx(call)
        current = await store.credentials(tx, proved.user.username, lock=True)
        if current is None or current.password_hash != proved.password_hash or current.user.state is UserState.DISABLED:
            raise WrongCredentials  # changed while the password was being checked
        if renewed:
            await store.rehash_password(tx, current.user.uid, renewed)
        session = self._new_session(current.user, call)
        refresh, hashed = new_refresh_token()
        await store.insert_session(tx, session, hashed)
        return pb.CreateSessionResponse(**self._signed_in(session, refresh, call))

    async def RefreshSession(self, request: pb.RefreshSessionRequest, call: Call) -> pb.RefreshSessionResponse:
        """Trades a refresh token for new tokens; a second use ends the session."""
        now, used = self._clock.now(), refresh_hash(request.refresh_token)
        tx = await pg.tx(call)
        session_id = await store.use_refresh(tx, used, now)
        if session_id is None:
            await self._end_if_used(used, call)
            raise RefreshRefused
        session = await store.renew_session(tx, session_id, now)
        if session is None:
            raise RefreshRefused
        refresh, hashed = new_refresh_token()
        await store.insert_refresh(tx, session.id, hashed, now)
        return pb.RefreshSessionResponse(**self._signed_in(session, refresh, call))

    async def ListSessions(self, request: pb.ListSessionsRequest, call: Call) -> pb.ListSessionsResponse:
        """A user's live sessions, newest first."""
        tx = await pg.tx(call)
        user = await store.get_user(tx, wire.username_of(request.parent))
        where = lists.Where()
        where.add("s.user_uid = {} AND s.ended IS NULL AND s.expires > {}", user.uid, self._clock.now())
        found = await lists.read(tx, self._pages, call, request, source=store.SESSIONS, where=where)
        shown = [wire.session_message(store.session_of(row)) for row in found.rows]
        return pb.ListSessionsResponse(sessions=shown, next_page_token=found.token)

    async def DeleteSession(self, request: pb.DeleteSessionRequest, call: Call) -> Empty:
        """Signs out; tokens and streams of the session end within a second."""
        tx = await pg.tx(call)
        session = wire.session_of(request.name)
        if not await store.end_session(tx, session, self._clock.now(), username=wire.username_of(request.name)):
            raise wire.no_such_session(request.name)
        return Empty()

    def _new_session(self, user: User, call: Call) -> Session:
        now = self._clock.now()
        return Session(
            id=new_id(),
            user_uid=user.uid,
            username=user.username,
            created=now,
            expires=domain.session_expiry(now, now),
            refreshed=now,
            address=call.address.replace("\0", ""),
            user_agent=call.user_agent.replace("\0", "")[:_LONGEST_AGENT],
        )

    def _signed_in(self, session: Session, refresh: str, call: Call) -> dict[str, Any]:
        """The answer's fields; from here on the call is the user's, for its audit record."""
        call.caller = Caller(Kind.USER, session.username, str(session.user_uid), str(session.id))
        call.resources.append(wire.session_name(session))
        issued = self._tokens.access(session.username, session.user_uid, session.id, session.expires)
        return {
            "session": wire.session_message(session),
            "access_token": issued.token,
            "refresh_token": refresh,
            "expire_time": wire.timestamp(issued.expires),
        }

    async def _end_if_used(self, refresh_hash_: bytes, call: Call) -> None:
        """Somebody holds a copy of a token: whoever it is, the session is over. Committed although the call fails."""
        async with self._database.transaction() as tx:
            session = await store.session_of_used(tx, refresh_hash_)
            if session is None:
                return
            await store.end_session(tx, session.id, self._clock.now())
        call.resources.append(wire.session_name(session))  # so that the refusal's audit record says whose
        _log.warning("session.refresh_reused", session=wire.session_name(session))
