"""Turns a bearer token into a caller whose session lives and whose rights are of now."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from libs.crypt import signing
from libs.faults import Unauthenticated
from libs.rpc.call import Call, Caller, Kind
from services.gateway.identity.directory import Directory
from services.gateway.identity.tokens import ACCESS_AUDIENCE, KUBERNETES_AUDIENCE, Issued, Tokens


class NotSignedIn(Unauthenticated):
    """There is no token, or it is not good (any more); why is not said to strangers."""

    reason = "NOT_SIGNED_IN"

    def __init__(self) -> None:
        super().__init__("sign in first: the access token is missing, has ended or is not valid")


class Authenticator:
    """The pipeline's `authenticate`, and the one of `/k8s`."""

    def __init__(self, tokens: Tokens, directory: Directory) -> None:
        self._tokens = tokens
        self._directory = directory

    async def authenticate(self, call: Call) -> Caller:
        """The user of a call; raises NotSignedIn, or Unavailable when that cannot be known now."""
        return await self._caller(call.credential, ACCESS_AUDIENCE)

    async def kubernetes(self, token: str, cluster_uid: str) -> Caller:
        """The user of a request to one cluster, by an access token or by a kubeconfig token of that cluster; raises as `authenticate`."""
        try:
            claims = await self._tokens.verify(token, KUBERNETES_AUDIENCE)
        except signing.Rejected:
            return await self._caller(token, ACCESS_AUDIENCE)
        if claims.cluster_uid != cluster_uid:
            raise NotSignedIn
        return await self._live(claims.uid, claims.session)

    async def still(self, caller: Caller) -> Caller:
        """A user of before as it stands now, for what lasts longer than a call; raises as `authenticate`."""
        return await self._live(UUID(caller.uid), UUID(caller.session))

    def kubeconfig_token(self, caller: Caller, cluster_uid: str, lifetime: timedelta | None = None) -> Issued:
        """A token for a kubeconfig, good for one cluster's `/k8s` and no longer than the caller's session."""
        return self._tokens.kubernetes(caller.id, UUID(caller.uid), UUID(caller.session), cluster_uid, lifetime)

    async def _caller(self, token: str, audience: str) -> Caller:
        if not token:
            raise NotSignedIn
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
        return Caller(Kind.USER, standing.account.username, str(uid), str(session_id), standing.rights)
