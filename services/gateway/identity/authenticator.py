"""Turns a bearer token or an API key into a caller whose session lives and whose rights are of now."""

from __future__ import annotations

from collections import OrderedDict
from datetime import timedelta
from uuid import UUID

from libs.crypt import signing
from libs.faults import Unauthenticated
from libs.rpc.call import Call, Caller, Kind
from services.gateway.identity.access_store import LiveSession
from services.gateway.identity.api_key_domain import PREFIX, SESSION, session_text, session_uid
from services.gateway.identity.directory import Directory, Places, Standing
from services.gateway.identity.key_check import KeyCheck
from services.gateway.identity.narrowed import KeyRights
from services.gateway.identity.tokens import ACCESS_AUDIENCE, KUBERNETES_AUDIENCE, Issued, Tokens

_REMEMBERED = 10_000


class NotSignedIn(Unauthenticated):
    """There is no token, or it is not good (any more); why is not said to strangers."""

    reason = "NOT_SIGNED_IN"

    def __init__(self) -> None:
        super().__init__("sign in first: the access token is missing, has ended or is not valid")


class Authenticator:
    """The pipeline's `authenticate`, and the one of `/k8s`.

    Args:
        tokens: verifies signed tokens.
        directory: sessions and users of now.
        keys: verifies API keys.
    """

    def __init__(self, tokens: Tokens, directory: Directory, keys: KeyCheck) -> None:
        self._tokens = tokens
        self._directory = directory
        self._keys = keys
        self._narrowed: OrderedDict[UUID, tuple[LiveSession, Standing, Places, Caller]] = OrderedDict()

    async def authenticate(self, call: Call) -> Caller:
        """The user of a call; raises NotSignedIn, or Unavailable when that cannot be known now."""
        caller = await self._caller(call.credential, ACCESS_AUDIENCE)
        self.used(caller, call.address)
        return caller

    def used(self, caller: Caller, address: str) -> None:
        """Notes when and from where an API key was used; of other callers nothing."""
        if caller.session.startswith(SESSION):
            self._keys.used(session_uid(caller.session), address)

    async def kubernetes(self, token: str, cluster_uid: str) -> Caller:
        """The user of a request to one cluster, by an access token or by a kubeconfig token of that cluster; raises as `authenticate`.

        An API key is taken as it is; what it is good for there, `kubernetes_limits.check` says of each request.
        """
        if token.startswith(PREFIX):
            return await self._caller(token, ACCESS_AUDIENCE)
        try:
            claims = await self._tokens.verify(token, KUBERNETES_AUDIENCE)
        except signing.Rejected:
            return await self._caller(token, ACCESS_AUDIENCE)
        if claims.cluster_uid != cluster_uid:
            raise NotSignedIn
        return await self._live(claims.uid, claims.session)

    async def still(self, caller: Caller) -> Caller:
        """A user of before as it stands now, for what lasts longer than a call; raises as `authenticate`."""
        return await self._live(UUID(caller.uid), session_uid(caller.session))

    def kubeconfig_token(self, caller: Caller, cluster_uid: str, lifetime: timedelta | None = None) -> Issued:
        """A token for a kubeconfig, good for one cluster's `/k8s` and no longer than the caller's session."""
        return self._tokens.kubernetes(caller.id, UUID(caller.uid), session_uid(caller.session), cluster_uid, lifetime)

    async def _caller(self, token: str, audience: str) -> Caller:
        if not token:
            raise NotSignedIn
        if token.startswith(PREFIX):
            id_ = await self._keys.verify(token)
            session = await self._directory.session(id_) if id_ else None
            if session is None:
                raise NotSignedIn
            return await self._live(session.user_uid, session.id)
        try:
            claims = await self._tokens.verify(token, audience)
        except signing.Rejected as error:
            raise NotSignedIn from error
        return await self._live(claims.uid, claims.session)

    async def _live(self, uid: UUID, session_id: UUID) -> Caller:
        session = await self._directory.session(session_id)
        if session is None or session.user_uid != uid:
            raise NotSignedIn
        standing = await self._directory.standing(uid)
        if standing is None:
            raise NotSignedIn
        if session.limits is not None:
            return self._by_key(session, standing)
        return Caller(Kind.USER, standing.account.username, str(uid), str(session_id), standing.rights)

    def _by_key(self, session: LiveSession, standing: Standing) -> Caller:
        """The owner with the key's rights; the same as last time while nothing has changed, since rights remember answers."""
        places, known = self._directory.places, self._narrowed.get(session.id)
        if known is not None and known[0] is session and known[1] is standing and known[2] is places:
            return known[3]
        assert session.limits is not None, "it is a key"
        rights = KeyRights(standing.rights, session.limits, places)
        text = session_text(session.limits.key, session.id)
        caller = Caller(Kind.USER, standing.account.username, str(session.user_uid), text, rights)
        self._narrowed[session.id] = (session, standing, places, caller)
        self._narrowed.move_to_end(session.id)
        if len(self._narrowed) > _REMEMBERED:
            self._narrowed.popitem(last=False)
        return caller
